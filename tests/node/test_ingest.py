"""Ingest: what is acknowledged is durable and found, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from consent.errors import Conflict, Denied, Invalid, Unavailable
from consent.principals import Principal
from consent.vocabulary import EventKind, Grade, Outcome, Role
from node import descriptions, ingest
from node.imaging import attributes as attributes_room
from node.imaging.attributes import Attributes, read_attributes
from node.index import Level, Query
from node.ingest import Arrival, Source
from tests.support.dicom import DEFLATED, IMPLICIT, ct_slice, pydicom_samples, study, uid
from tests.support.node import NodeFixture, arrival, small_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as node:
        yield node


async def answers(node: NodeFixture, level: Level = Level.STUDY, **keys: str) -> int:
    return len((await node.index.search(Query.of(level, keys))).matches)


@pytest.mark.requirement("V4")
async def test_what_was_received_is_found_and_on_record(node: NodeFixture) -> None:
    """Two series of three slices become rows with totals, and one log entry for the study and its source."""
    receipts = await node.store(*study(series=2, slices=3))

    row = await node.index.study(receipts[0].study)
    assert (row.series_count, row.instance_count, row.modalities) == (2, 6, ("CT",))
    entries = [entry.event for entry in await node.events(EventKind.INSTANCES_STORED)]
    assert sum(int(str(event.detail["instances"])) for event in entries) == 6
    assert {event.actor for event in entries} == {"device:CT1"}
    assert {(event.study, event.patient, event.address) for event in entries} == {
        (row.study, row.patient, "10.0.0.5")
    }
    assert (await node.index.indexed_to())[row.study] == dict(await node.vault.studies())[row.study]


async def test_real_studies_are_taken_whole(node: NodeFixture) -> None:
    """The multi-series CT, MR and CR studies that ship with pydicom all arrive."""
    samples = list(pydicom_samples())
    await node.store(*samples)

    assert (await node.index.totals()).instances == len(samples)
    assert await answers(node, PatientName="doe*") > 0


@pytest.mark.parametrize("syntax", [IMPLICIT, DEFLATED])
async def test_every_encoding_is_kept_as_sent(node: NodeFixture, syntax: str) -> None:
    """The data set's own bytes are stored, with the digest that was taken when they came."""
    one = ct_slice(transfer_syntax=syntax)
    (receipt,) = await node.store(one)
    row = await node.index.instance(receipt.study, receipt.instance)

    assert (row.transfer_syntax_uid, row.sha256, row.size_bytes) == (syntax, one.sha256, len(one.data))


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(("syntax", "quick"), [(IMPLICIT, 60), (DEFLATED, 2_000), (IMPLICIT, 2_000)])
async def test_a_long_header_is_read_beside_the_loop(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch, syntax: str, quick: int
) -> None:
    """What takes long to read holds nobody else up and loses nothing, not even what lies in sequences."""
    threads: list[bool] = []

    def read(*args: Any, **bounds: Any) -> Attributes:
        found = read_attributes(*args, **bounds)
        threads.append(threading.current_thread() is threading.main_thread())
        return found

    for room in (ingest, attributes_room):  # beside the loop, and in place
        monkeypatch.setattr(room, "read_attributes", read)
    monkeypatch.setattr(ingest, "QUICK_ELEMENTS", quick)
    code = Dataset()
    code.CodeValue = "77477000"
    for number in range(100):  # more than is looked at in place, in the one case
        code.add_new(0x00090000 + 0x1000 + number, "LO", "x")
    one = ct_slice(transfer_syntax=syntax, ProcedureCodeSequence=[code])
    (receipt,) = await node.store(one)
    await node.ingest.flushed()
    (found,) = (await node.index.search(Query.of(Level.STUDY, {}))).matches

    assert threads == [(syntax, quick) == (IMPLICIT, 2_000)]
    assert found.study == receipt.study
    assert found.values["ProcedureCodeSequence"][0]["CodeValue"] == "77477000"


async def test_the_same_bytes_again_are_a_duplicate(node: NodeFixture) -> None:
    """A repeated sending is acknowledged and changes nothing."""
    one = ct_slice()
    first, second = await node.store(one), await node.store(one)

    assert (first[0].duplicate, second[0].duplicate) == (False, True)
    assert replace(first[0], duplicate=True) == second[0]
    assert (await node.index.totals()).instances == 1


@pytest.mark.requirement("C3", "F4")
async def test_other_bytes_under_a_known_uid_are_refused(node: NodeFixture) -> None:
    """The first instance is kept; the second is a Conflict, on record, also when both are on their way at once."""
    first, other = ct_slice(), ct_slice(SliceThickness="2.0")
    await node.store(first)
    with pytest.raises(Conflict, match="first one was kept"):
        await node.ingest.receive(arrival(other), node.source)

    third, fourth = ct_slice(number=9), ct_slice(number=9, SliceThickness="2.0")
    results = await asyncio.gather(
        *(node.ingest.receive(arrival(one), node.source) for one in (third, fourth)), return_exceptions=True
    )
    assert [type(one).__name__ for one in results] == ["Receipt", "Conflict"]
    refused = await node.events(EventKind.INSTANCE_REFUSED)
    assert [entry.event.detail["code"] for entry in refused] == ["instance-differs"] * 2
    assert all(entry.event.outcome is Outcome.REFUSED for entry in refused)


async def test_two_associations_with_the_same_instance_store_it_once(node: NodeFixture) -> None:
    """Sent ten times at once, it is stored once and everybody is told yes."""
    one = arrival(ct_slice())
    receipts = await asyncio.gather(*(node.ingest.receive(one, node.source) for _ in range(10)))
    await node.ingest.flushed()

    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 9
    survey = await node.vault.objects(receipts[0].study)
    assert len(survey.objects) == 2  # the data set and its attributes
    assert (await node.index.totals()).instances == 1


async def test_an_instance_uid_in_another_study_is_refused(node: NodeFixture) -> None:
    """A SOP Instance UID names one instance everywhere."""
    await node.store(ct_slice())
    with pytest.raises(Conflict):
        await node.ingest.receive(
            arrival(ct_slice(study="other", SOPInstanceUID=uid("study-1", 1, 1))), node.source
        )


async def test_a_study_stays_with_its_patient(node: NodeFixture) -> None:
    """Another patient's image under the same Study Instance UID is refused; one without an ID goes with the study."""
    await node.store(ct_slice())
    with pytest.raises(Conflict, match="another patient"):
        await node.ingest.receive(arrival(ct_slice(number=2, patient_id="P-0002")), node.source)
    await node.store(ct_slice(number=3, patient_id=""))

    assert (await node.index.totals()).instances == 2


async def test_a_refused_instance_does_not_bind_a_study_to_its_patient(node: NodeFixture) -> None:
    """What was refused leaves nothing behind that could keep the right patient's images out."""
    stranger = Source(Principal("nobody", Role.RESEARCHER, "Nobody", node.node_id), "stow", "10.0.0.9")
    with pytest.raises(Denied):
        await node.ingest.receive(arrival(ct_slice(patient_id="P-0002")), stranger)

    assert len(await node.store(ct_slice())) == 1


async def test_patients_without_an_id_do_not_share_a_pseudonym(node: NodeFixture) -> None:
    """Two studies whose Patient ID is empty are two patients."""
    one, two = await node.store(ct_slice(patient_id=""), ct_slice(study="other", patient_id=""))

    assert await node.index.patient_of(one.study) != await node.index.patient_of(two.study)


@pytest.mark.requirement("V1")
async def test_grades_follow_the_policy_and_only_rise(node: NodeFixture) -> None:
    """A mammography makes its study sensitive; a later plain image does not lower it."""
    await node.store(ct_slice(), ct_slice(number=2, modality="MG"), ct_slice(number=3))
    (receipt,) = await node.store(ct_slice(number=4))

    assert (await node.index.study(receipt.study)).grade is Grade.SENSITIVE
    grades = [stored.grade for stored in (await node.vault.objects(receipt.study)).objects]
    assert grades == [1, 1, 2, 2, 2, 2, 2, 2]


HOSTILE = {
    "empty": (b"", "truncated|missing|short|cut"),
    "cut short": (ct_slice().data[:900], "short|cut|longer|ends|shorter"),
    "no UIDs": (ct_slice(SOPInstanceUID="").data, "SOPInstanceUID"),
    "UID with a path": (ct_slice(StudyInstanceUID="1.2").data.replace(b"1.2\0", b"../x"), "UID"),
}


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("name", HOSTILE)
async def test_malformed_instances_are_refused_and_on_record(node: NodeFixture, name: str) -> None:
    """Hostile bytes are Invalid, named in the log, and leave no pack and no row."""
    data, words = HOSTILE[name]
    bad = Arrival.of("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", data)
    with pytest.raises(Invalid, match=words):
        await node.ingest.receive(bad, node.source)

    assert await node.vault.studies() == []
    assert len(await node.events(EventKind.INSTANCE_REFUSED)) == 1


async def test_the_announced_instance_must_be_the_one_that_comes(node: NodeFixture) -> None:
    """A SOP Instance UID in the message that is not the data set's is refused."""
    with pytest.raises(Invalid, match="differ"):
        await node.ingest.receive(replace(arrival(ct_slice()), sop_instance_uid="1.2.3"), node.source)


@pytest.mark.requirement("U1", "C1")
@pytest.mark.parametrize("role", [Role.RESEARCHER, Role.SECURITY_OFFICER, Role.MEMBER])
async def test_who_may_not_bring_images_is_refused(node: NodeFixture, role: Role) -> None:
    """The rules decide about every instance, not the door."""
    source = Source(Principal("x", role, "X", node.node_id), "stow", "10.0.0.9")
    with pytest.raises(Denied):
        await node.ingest.receive(arrival(ct_slice()), source)
    assert await node.vault.studies() == []


@pytest.mark.requirement("F4")
async def test_a_full_disk_leaves_nothing_half(node: NodeFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender is told to try later; once there is room the same instance is taken."""
    await node.store(ct_slice())

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", full)
        with pytest.raises(Unavailable):
            await node.ingest.receive(arrival(ct_slice(number=2)), node.source)
    await node.store(ct_slice(number=2))

    assert (await node.index.totals()).instances == 2


@pytest.mark.requirement("F4")
async def test_a_sender_that_hangs_up_leaves_nothing_unindexed(node: NodeFixture) -> None:
    """Cancelled while its bytes become durable, the instance is in the index all the same."""
    task = asyncio.create_task(node.ingest.receive(arrival(ct_slice()), node.source))
    while not node.ingest._storing:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(*node.ingest._storing)
    await node.ingest.flushed()

    assert (await node.index.totals()).instances == 1


@pytest.mark.requirement("F4")
async def test_what_a_crash_kept_from_the_index_is_recovered(tmp_path: Path) -> None:
    """Acknowledged, then killed before the flush: after the restart every instance is found, and logged."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    async with small_node(before) as node:
        await node.store(*study(slices=2))
        node.ingest._flusher._flush = asyncio.Event().wait  # type: ignore[assignment,method-assign]
        for one in (*study(slices=4)[2:], *study(name="study-2", slices=3)):
            await node.ingest.receive(arrival(one), node.source)
        shutil.copytree(before, after)  # what a kill -9 leaves: packs on disk, rows only in memory
        del node.ingest._flusher._flush

    async with small_node(after) as node:
        assert (await node.index.totals()).instances == 7
        assert await answers(node, PatientName="zhang*") == 2
        recovered = [
            entry.event
            for entry in await node.events(EventKind.INSTANCES_STORED)
            if entry.event.detail["channel"] == "recovery"
        ]
        assert sorted(int(str(event.detail["instances"])) for event in recovered) == [2, 3]
        assert await node.index.indexed_to() == dict(await node.vault.studies())
        assert await node.ingest.recover() == 0


@pytest.mark.requirement("F4", "V1")
async def test_the_index_is_rebuilt_from_the_packs_alone(tmp_path: Path) -> None:
    """Rows that were lost altogether come back."""
    async with small_node(tmp_path) as node:
        receipts = await node.store(*study(series=2, slices=2))
        async with node.database.write() as tx:
            await node.index.remove(tx, receipts[0].study)
        assert await node.ingest.recover() == 4
        assert (await node.index.study(receipts[0].study)).series_count == 2


@pytest.mark.requirement("C3")
async def test_a_damaged_pack_does_not_keep_the_others_from_recovery(tmp_path: Path) -> None:
    """The damaged one is named in the log; the rest is found."""
    async with small_node(tmp_path) as node:
        (bad,) = await node.store(ct_slice())
        (good,) = await node.store(ct_slice(study="other"))
        async with node.database.write() as tx:
            for receipt in (bad, good):
                await node.index.remove(tx, receipt.study)
        path = next((tmp_path / "studies").rglob(f"{bad.study}.pack"))
        content = bytearray(path.read_bytes())
        content[10] ^= 1
        path.write_bytes(content)

        assert await node.ingest.recover() == 1
        failed = await node.events(EventKind.INTEGRITY_FAILED)
        assert [entry.event.study for entry in failed] == [bad.study]


async def test_rows_wait_while_the_database_cannot_write(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that is durable is acknowledged; its row follows when the database is back."""

    def failing(*_: Any) -> None:
        raise Unavailable("The database cannot write now.")

    with monkeypatch.context() as patched:
        patched.setattr(node.index, "added", failing)
        await node.ingest.receive(arrival(ct_slice()), node.source)
        with pytest.raises(Unavailable):
            await node.ingest.flushed()
        again = await node.ingest.receive(arrival(ct_slice()), node.source)
        assert again.duplicate
    await node.ingest.flushed()

    assert (await node.index.totals()).instances == 1


async def test_a_large_pack_is_recovered_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More instances than one transaction takes come back all the same, and the pack counts as indexed to its end."""
    monkeypatch.setattr("node.recovery.BATCH", 2)
    async with small_node(tmp_path) as node:
        receipts = await node.store(*study(slices=5))
        async with node.database.write() as tx:
            await node.index.remove(tx, receipts[0].study)

        assert await node.ingest.recover() == 5
        assert await node.index.indexed_to() == dict(await node.vault.studies())
        assert await node.ingest.recover() == 0


async def test_an_error_that_nobody_foresaw_does_not_end_indexing(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background duty tries again, so what was acknowledged is found later."""
    monkeypatch.setattr("node.flusher.RETRY_SECONDS", 0.01)
    added, failures = node.index.added, [KeyError("column")]

    def failing_once(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return added(*arguments)

    monkeypatch.setattr(node.index, "added", failing_once)
    await node.ingest.receive(arrival(ct_slice()), node.source)
    async with asyncio.timeout(5):
        while (await node.index.totals()).instances == 0:
            await asyncio.sleep(0.02)

    assert not failures


@pytest.mark.parametrize("large", [0, 64 * 1024], ids=["in-a-thread", "in-place"])
async def test_metadata_of_a_quiet_series_is_made_and_kept(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """The DICOM JSON of a series lies sealed in the pack, of all its instances, however long their headers are."""
    monkeypatch.setattr(descriptions, "LARGE_HEAD_BYTES", large)
    (receipt, *_) = await node.store(*study(slices=3))
    await node.ingest.descriptions.settled()
    await node.ingest.flushed()
    (series,) = await node.index.series(receipt.study)

    assert series.metadata is not None
    assert series.metadata.count == 3
    assert await node.index.indexed_to() == dict(await node.vault.studies())


def spellings(value: str) -> set[bytes]:
    """A planted value in every usual encoding."""
    forms: set[bytes] = set()
    for text in {value, value.upper(), value.lower(), value.swapcase(), value[::-1]}:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be", "latin-1", "gb18030"):
            try:
                raw = text.encode(encoding)
            except UnicodeEncodeError:
                continue
            forms |= {raw, raw.hex().encode(), raw.hex().upper().encode(), hashlib.sha256(raw).digest()}
            forms |= {base64.b64encode(b"\0" * pad + raw)[4 if pad else 0 : -4] for pad in range(3)}
            forms.add(hashlib.md5(raw).hexdigest().encode())
    return {form for form in forms if len(form) >= 5}


@pytest.mark.requirement("V1")
async def test_planted_identifiers_are_nowhere_in_the_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Name, ID, birth date, accession, physician and description occur in no file and no output, in any encoding."""
    planted = {
        "patient_name": "Quirinius^Zebedaeus=查无此人^某某",
        "patient_id": "PLANTED-ID-47110815",
        "birth_date": "19431217",
        "accession_number": "ACCPLANT9931",
        "study_description": "Planted description of nothing",
    }
    async with small_node(tmp_path) as node:
        await node.store(*study(slices=3, ReferringPhysicianName="Hippokrates^Asklepios", **planted))
        await node.ingest.descriptions.settled()
        assert await answers(node, PatientName="quirin*") == 1
        values = [part for value in planted.values() for part in value.replace("=", "^").split("^")]
        needles = {form for value in (*values, "Hippokrates") for form in spellings(value)}
        for _ in range(2):  # while it runs, with the write-ahead log, and after a restart
            stored = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert any(path.suffix == ".pack" for path in stored)
            for path in stored:
                content = path.read_bytes()
                assert not [needle for needle in needles if needle in content], path.name
    output = "".join(capfd.readouterr())
    assert not [value for value in values if value in output]
