"""Another grade: sealed anew under another key, the old key gone, nothing lost; a crash leaves the old or the new."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from consent.errors import AccordError, Conflict, Corrupt, NotFound, Unavailable
from consent.vocabulary import Action, EventKind, Grade, Outcome, Role
from node.regrading import Regrading
from node.vault.blobs import Appendable, FileBlobs, Read
from node.vault.key_tables import vault_regrade, vault_study_key
from node.vault.pack import survey
from node.vault.seal import object_key, open_sealed
from tests.support.dicom import Instance, ct_slice, study
from tests.support.node import NodeFixture, arrival, small_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as running:
        yield running


def regrading_of(node: NodeFixture) -> Regrading:
    return Regrading(
        vault=node.vault,
        blobs=node.blobs,
        keys=node.keys,
        index=node.index,
        ingest=node.ingest,
        log=node.log,
        database=node.database,
        clock=node.clock,
    )


async def chief(node: NodeFixture):  # type: ignore[no-untyped-def]
    return replace(await node.person(Role.CHIEF_PHYSICIAN), second_factor=True)


async def all_read(node: NodeFixture, name: str, instances: tuple[Instance, ...]) -> None:
    """Every instance comes back with the bytes that were sent."""
    opening = await node.gateway.open(await chief(node), name, action=Action.DOWNLOAD)
    for one in instances:
        assert (await node.gateway.instance(opening, one.sop_instance_uid)).data == one.data
    await node.gateway.close_opening(opening)


async def grades_of(node: NodeFixture, name: str) -> set[int]:
    async with node.database.read() as tx:
        rows = await tx.execute(select(vault_study_key.c.grade).where(vault_study_key.c.study == name))
        return set(rows.scalars())


@pytest.mark.requirement("V1", "F4")
async def test_a_change_asked_for_again_first_finishes_the_one_that_was_cut_short(node: NodeFixture) -> None:
    """A note that is left is settled before, where that can be done; until then the answer is a conflict in words."""
    sent = study(slices=2)
    (first, *_) = await node.store(*sent)
    note = {"study": first.study, "grade": 3, "generation": 9, "made_key": False, "actor": "system"}
    async with node.database.write() as tx:
        await tx.execute(insert(vault_regrade).values(**note, created=node.clock.now()))
    regrading = regrading_of(node)

    def fails(name: str) -> None:
        raise Unavailable("the disk fails")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.blobs, "tidy", fails)
        with pytest.raises(Conflict, match="could not be finished yet"):
            await regrading.regrade(first.study, Grade.SENSITIVE, "system")
    done = await regrading.regrade(first.study, Grade.SENSITIVE, "system")
    assert (done.before, done.after) == (Grade.ORDINARY, Grade.SENSITIVE)
    await all_read(node, first.study, sent)


@pytest.mark.requirement("V1", "V4")
@pytest.mark.parametrize("grade", [Grade.RESTRICTED, Grade.SENSITIVE])
async def test_a_study_is_sealed_anew_and_its_old_key_is_gone(node: NodeFixture, grade: Grade) -> None:
    """Same bytes for who may read, other ciphertext, another key; the old file opens for nobody; all of it on record."""
    sent = study(slices=3)
    name = (await node.store(*sent))[0].study
    old_key = await node.keys.study_key(None, name, Grade.ORDINARY)
    pack = next((node.path / "studies").rglob("*.pack"))
    shutil.copy(pack, node.path / "thief.pack")
    done = await regrading_of(node).regrade(name, grade, "person:officer@a-general", reason="A colleague.")
    assert (done.before, done.after, done.objects) == (1, grade, 6)
    await all_read(node, name, sent)
    assert await grades_of(node, name) == {grade}
    assert (await node.index.study(name)).grade is grade
    with pytest.raises(NotFound):
        await node.keys.study_key(None, name, Grade.ORDINARY)
    data = pack.read_bytes()
    stored = survey(lambda at, count: data[at : at + count], len(data), name).objects
    assert {one.grade for one in stored} == {grade} and len(stored) == 6
    for one in stored:
        with pytest.raises(Corrupt):
            body = data[one.offset : one.offset + one.length]
            open_sealed(body, object_key(old_key, one.object_id), one.header(name))
    (event,) = await node.events(EventKind.STUDY_REGRADED)
    assert (event.event.actor, event.event.reason) == ("person:officer@a-general", "A colleague.")
    assert event.event.detail == {"from": 1, "to": int(grade), "objects": 6}
    connection = sqlite3.connect(node.path / "node.db")
    assert connection.execute("SELECT count(*) FROM vault_regrade").fetchone() == (0,)
    connection.close()


@pytest.mark.requirement("V1")
async def test_a_study_goes_up_and_down_grows_and_survives_restarts(tmp_path: Path) -> None:
    """What arrives afterwards joins the new grade; after a restart everything is still there."""
    first, second, third = study(slices=3, series=1)
    async with small_node(tmp_path) as node:
        name = (await node.store(first))[0].study
        await regrading_of(node).regrade(name, Grade.RESTRICTED, "system")
        await node.store(second)
        assert await grades_of(node, name) == {3}
        await all_read(node, name, (first, second))
    async with small_node(tmp_path) as node:
        await regrading_of(node).regrade(name, Grade.ORDINARY, "system")
        assert await grades_of(node, name) == {1}
        await node.store(third)
        assert (await node.index.study(name)).grade is Grade.ORDINARY
        await regrading_of(node).regrade(name, Grade.SENSITIVE, "system")
    async with small_node(tmp_path) as node:
        assert await node.ingest.recover() == 0
        await all_read(node, name, (first, second, third))
        assert await grades_of(node, name) == {2}


@pytest.mark.requirement("V1", "F4")
async def test_ingest_and_reading_go_on_while_a_study_is_regraded(node: NodeFixture) -> None:
    """Slices that arrive meanwhile wait and join the new grade; who reads sees right bytes at every moment."""
    sent = study(slices=12, size=128)
    name = (await node.store(*sent[:4]))[0].study
    opening = await node.gateway.open(await chief(node), name, action=Action.DOWNLOAD)
    regrading = regrading_of(node)

    async def read_all_the_time() -> int:
        count = 0
        while not finished.is_set():
            for one in sent[:4]:
                assert (await node.gateway.instance(opening, one.sop_instance_uid)).data == one.data
                count += 1
        return count

    finished = asyncio.Event()
    reading = asyncio.create_task(read_all_the_time())
    for number, grade in enumerate((Grade.RESTRICTED, Grade.SENSITIVE, Grade.RESTRICTED)):
        new = sent[4 + 2 * number : 6 + 2 * number]
        await asyncio.gather(
            regrading.regrade(name, grade, "system"),
            *(node.ingest.receive(arrival(one), node.source) for one in new),
        )
    finished.set()
    assert await reading > 4
    await node.ingest.flushed()
    await all_read(node, name, sent[:10])
    assert (await node.index.study(name)).grade is Grade.RESTRICTED
    assert await node.events(EventKind.INTEGRITY_FAILED) == []


async def test_the_same_grade_and_an_unknown_study_are_refused(node: NodeFixture) -> None:
    """Nothing is rewritten for nothing."""
    name = (await node.store(ct_slice()))[0].study
    pack = next((node.path / "studies").rglob("*.pack"))
    before = pack.stat().st_ino
    with pytest.raises(Conflict, match="already"):
        await regrading_of(node).regrade(name, Grade.ORDINARY, "system")
    with pytest.raises(NotFound):
        await regrading_of(node).regrade("st_" + "z" * 26, Grade.RESTRICTED, "system")
    assert pack.stat().st_ino == before
    assert await node.events(EventKind.STUDY_REGRADED) == []


@pytest.mark.requirement("V1", "C3")
async def test_a_study_with_a_damaged_object_keeps_its_grade(node: NodeFixture) -> None:
    """What is not what arrived is not sealed anew as if it were; the study stays as it is, its new key is taken back."""
    sent = study(slices=2)
    name = (await node.store(*sent))[0].study
    pack = next((node.path / "studies").rglob("*.pack"))
    data = bytearray(pack.read_bytes())
    last = survey(lambda at, count: bytes(data[at : at + count]), len(data), name).objects[-1]
    data[last.offset + 100] ^= 1
    pack.write_bytes(data)
    with pytest.raises(Corrupt):
        await regrading_of(node).regrade(name, Grade.RESTRICTED, "system")
    assert await grades_of(node, name) == {1}
    assert pack.read_bytes() == bytes(data)
    assert [entry.name for entry in pack.parent.iterdir()] == [pack.name]
    await all_read(node, name, sent[:1])


class Failing(FileBlobs):
    """Blobs on a disk that fails at a chosen moment of a rewriting."""

    when = ""

    def rewritten(self, name: str, make: Callable[[Read, int, Appendable], None]) -> None:
        def failing(read: Read, size: int, new: Appendable) -> None:
            if self.when == "before":
                raise Unavailable("No space left on device.", code="storage")
            make(read, size, new)
            if self.when == "at the end":
                raise Unavailable("No space left on device.", code="storage")

        super().rewritten(name, failing)
        if self.when == "after":
            raise Unavailable("Input/output error.", code="storage")


@pytest.mark.requirement("V1", "F4")
@pytest.mark.parametrize("when", ["before", "at the end", "after", "database"])
async def test_a_full_disk_leaves_the_old_grade_or_the_new(
    node: NodeFixture, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it fails: the study is whole, reads, and has one grade; once there is room again nothing is left over."""
    sent = study(slices=2)
    name = (await node.store(*sent))[0].study
    failing = Failing(node.blobs.root)
    failing.when = when
    monkeypatch.setattr(node.vault, "_blobs", failing)
    monkeypatch.setattr("node.vault.keys.EXCHANGE_SECONDS", 0.2)
    regrading = regrading_of(node)
    if when == "database":

        async def full(*args: object) -> None:
            raise Unavailable("The database cannot write now (disk full).", code="storage")

        monkeypatch.setattr(node.index, "relocate", full)
    try:
        await regrading.regrade(name, Grade.RESTRICTED, "system")
        failed = False
    except AccordError as error:
        assert isinstance(error, Unavailable)
        failed = True
    assert failed is (when != "after")  # there the new file is in place: it counts
    if when == "database":
        with pytest.raises(Unavailable, match="another grade"):  # not "not what arrived"
            await all_read(node, name, sent)
        monkeypatch.undo()
        assert await regrading.recover() == 1
    await all_read(node, name, sent)
    assert await grades_of(node, name) == ({3} if when in ("after", "database") else {1})
    assert await regrading.recover() == 0
    assert len(await node.events(EventKind.STUDY_REGRADED)) == (when in ("after", "database"))


@pytest.mark.requirement("V1")
async def test_a_regrading_whose_caller_hangs_up_ends_in_order(node: NodeFixture) -> None:
    """A cancelled request does not leave a file behind that nothing opens."""
    sent = study(slices=6, size=256)
    name = (await node.store(*sent))[0].study
    regrading = regrading_of(node)
    asked = asyncio.create_task(regrading.regrade(name, Grade.RESTRICTED, "system"))
    while not list(node.blobs.root.rglob(".*.new")) and not asked.done():
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    await asyncio.sleep(0.05)
    await regrading.recover()
    await all_read(node, name, sent)
    async with node.database.read() as tx:
        assert (await tx.execute(select(vault_regrade))).first() is None
    assert len(await grades_of(node, name)) == 1


@pytest.mark.requirement("V1", "U1")
async def test_the_new_grade_has_its_own_rules_at_once(node: NodeFixture) -> None:
    """Who treats the patient and has no second factor sees the study no more once it is restricted."""
    receipt = (await node.store(ct_slice()))[0]
    who = await node.person(treats=[await node.index.patient_of(receipt.study)])
    opening = await node.gateway.open(who, receipt.study)
    assert await node.gateway.series(opening)
    await regrading_of(node).regrade(receipt.study, Grade.RESTRICTED, "system")
    with pytest.raises(AccordError):
        await node.gateway.open(who, receipt.study)
    refused = await node.events(EventKind.ACCESS_REFUSED)
    assert refused[-1].event.outcome is Outcome.REFUSED
