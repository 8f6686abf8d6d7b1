"""C-GET and C-MOVE against a whole node: what is sent, in which form, how it is counted, who may have it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Event as Event_
from typing import Any

import pynetdicom
import pytest
import pytest_asyncio
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless
from pynetdicom import evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (
    CTImageStorage,
    MRImageStorage,
    PatientRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from consent.vocabulary import EventKind
from node.access.devices import DeviceState
from node.dicom import retrieve
from node.gateway import data_sets, reading
from node.ports import free_ports
from node.tls import KeyPair, dicom_server_context
from tests.node.dicom.archive import (
    READING_ROOM,
    SCANNER,
    UNCOMPRESSED,
    WORKSTATION,
    Archive,
    archive_in,
    identifier,
)
from tests.support.dicom import DEFLATED, EXPLICIT, IMPLICIT, Instance, ct_slice, from_file, study, uid

GET = str(StudyRootQueryRetrieveInformationModelGet)
PATIENT_GET = str(PatientRootQueryRetrieveInformationModelGet)
MOVE = str(StudyRootQueryRetrieveInformationModelMove)
CT, MR = str(CTImageStorage), str(MRImageStorage)
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.requirement("F5"),
    pytest.mark.timeout(90),
]


def compressed(one: Instance, syntax: str) -> Instance:
    """The same slice in another transfer syntax."""
    ds = one.dataset()
    ds.compress(syntax, generate_instance_uid=False)
    out = BytesIO()
    ds.save_as(out)
    return from_file(out.getvalue())


CT_STUDY = study(name="g1", series=2, slices=3, patient_id="G")
MR_SLICE = ct_slice(study="g2", patient_id="G", modality="MR", sop_class_uid=MR)
J2K = compressed(ct_slice(study="g3", patient_id="G", size=64), str(JPEG2000Lossless))
PACKED = ct_slice(study="g4", patient_id="H", transfer_syntax=DEFLATED)
RADIOLOGY = ct_slice(study="g5", patient_id="R", InstitutionalDepartmentName="RADIOLOGY")
SECRET = ct_slice(study="g6", patient_id="S", InstitutionalDepartmentName="STAFF HEALTH")


@dataclass
class Store:
    """A peer that takes instances; says `status` to those in `refuses`."""

    port: int
    got: list[tuple[str, Dataset]] = field(default_factory=list)
    originators: set[tuple[str, int]] = field(default_factory=set)
    refuses: dict[str, int] = field(default_factory=dict)
    leaves_after: int = -1
    waits: Event_ | None = None
    """What the answer to the second instance waits for."""

    def take(self, event: Event) -> int:
        if self.waits is not None and self.got:
            self.waits.wait(30)
        if len(self.got) == self.leaves_after:
            event.assoc.abort()
            return 0
        ds = event.dataset
        status = self.refuses.get(str(ds.SOPInstanceUID), 0)
        if status == 0:
            self.got.append((str(event.context.transfer_syntax), ds))
        request = event.request
        if request.MoveOriginatorMessageID is not None:
            title = request.MoveOriginatorApplicationEntityTitle
            self.originators.add((str(title).strip(), int(request.MoveOriginatorMessageID)))
        return status

    @property
    def uids(self) -> set[str]:
        return {str(ds.SOPInstanceUID) for _, ds in self.got}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def archive(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Archive]:
    """A patient with three studies in three forms, a deflated one, one of a department, one restricted."""
    async with archive_in(tmp_path_factory.mktemp("retrieve")) as archive:
        await archive.node.store(*CT_STUDY, MR_SLICE, J2K, PACKED, RADIOLOGY, SECRET)
        yield archive


@dataclass(frozen=True)
class Outcome:
    """The last answer of a retrieval."""

    status: int
    words: str
    completed: int
    failed: int
    warning: int
    listed: tuple[str, ...]
    answers: int


def outcome(responses: Iterator[tuple[Dataset, Dataset | None]]) -> Outcome:
    answers, last, data = 0, Dataset(), None
    for last, data in responses:
        answers += 1
    listed = data.get("FailedSOPInstanceUIDList") if data is not None else None
    uids = [listed] if isinstance(listed, str) else list(listed or [])
    return Outcome(
        last.Status, last.get("ErrorComment", ""),
        last.get("NumberOfCompletedSuboperations", 0), last.get("NumberOfFailedSuboperations", 0),
        last.get("NumberOfWarningSuboperations", 0), tuple(map(str, uids)), answers,
    )  # fmt: skip


def get(
    archive: Archive,
    store: Store,
    question: Dataset,
    *,
    model: str = GET,
    calling: str = WORKSTATION,
    classes: tuple[str, ...] = (CT, MR),
    syntaxes: Any = UNCOMPRESSED,
    cancels: Event_ | None = None,
) -> Outcome:
    """A C-GET, cancelled after the first answer where `cancels` is there to be set; blocks."""
    entity = pynetdicom.AE(calling)
    entity.add_requested_context(model, UNCOMPRESSED)
    for one in classes:
        entity.add_requested_context(one, list(syntaxes))
    association = entity.associate(
        "127.0.0.1", archive.port, ae_title="ACCORD",
        ext_neg=[pynetdicom.build_role(one, scp_role=True) for one in classes],
        evt_handlers=[(evt.EVT_C_STORE, store.take)],
    )  # fmt: skip
    assert association.is_established
    try:

        def responses() -> Iterator[tuple[Dataset, Dataset | None]]:
            for answer, data in association.send_c_get(question, model):
                if cancels is not None and not cancels.is_set():
                    association.send_c_cancel(1, query_model=model)
                    cancels.set()
                yield answer, data

        return outcome(responses())
    finally:
        association.release()


@contextmanager
def destination(
    port: int, *, leaves_after: int = -1, waits: Event_ | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Store]:
    """A listening store."""
    store = Store(port, leaves_after=leaves_after, waits=waits)
    entity = pynetdicom.AE(READING_ROOM)
    for one in (CT, MR):
        entity.add_supported_context(one, UNCOMPRESSED)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_STORE, store.take)]
    )
    try:
        yield store
    finally:
        server.shutdown()


def move(
    archive: Archive,
    question: Dataset,
    to: str,
    *,
    calling: str = WORKSTATION,
    cancels: Event_ | None = None,
    tls: KeyPair | None = None,
) -> Outcome:
    """A C-MOVE, cancelled as in `get`; blocks."""
    association = archive.associate([MOVE], calling=calling, tls=tls)
    try:

        def responses() -> Iterator[tuple[Dataset, Dataset | None]]:
            for answer, data in association.send_c_move(question, to, MOVE):
                if cancels is not None and not cancels.is_set():
                    association.send_c_cancel(1, query_model=MOVE)
                    cancels.set()
                yield answer, data

        return outcome(responses())
    finally:
        association.release()


def whole_study(name: str) -> Dataset:
    return identifier("STUDY", StudyInstanceUID=uid(name))


@pytest.mark.requirement("C3")
@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        (whole_study("g1"), range(6)),
        (identifier("SERIES", StudyInstanceUID=uid("g1"), SeriesInstanceUID=uid("g1", 2)), range(3, 6)),
        (
            identifier("SERIES", StudyInstanceUID=uid("g1"), SeriesInstanceUID=[uid("g1", 1), uid("g1", 2)]),
            range(6),
        ),
        (
            identifier(
                "IMAGE", StudyInstanceUID=uid("g1"), SeriesInstanceUID=uid("g1", 1),
                SOPInstanceUID=[uid("g1", 1, 1), uid("g1", 1, 3), uid("nowhere")],
            ),
            (0, 2),
        ),
    ],
    ids=["study", "series", "two-series", "images"],
)  # fmt: skip
async def test_get_sends_what_is_asked_for_as_it_is(
    archive: Archive, question: Dataset, numbers: Any
) -> None:
    """Each level, lists of UIDs; the pixels that arrived, one answer after each instance and one at the end."""
    store = Store(0)
    done = await asyncio.to_thread(get, archive, store, question)
    wanted = [CT_STUDY[number] for number in numbers]

    assert done == Outcome(0, "", len(wanted), 0, 0, (), len(wanted) + 1)
    assert store.uids == {one.sop_instance_uid for one in wanted}
    sent = {one.sop_instance_uid: one.dataset() for one in wanted}
    assert all(ds.PixelData == sent[str(ds.SOPInstanceUID)].PixelData for _, ds in store.got)


async def test_a_large_instance_goes_in_pieces(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound nothing is held whole: it is verified, read again and sent piece by piece, in order."""
    monkeypatch.setattr(data_sets, "MAX_WHOLE_BYTES", 1000)
    monkeypatch.setattr(reading, "PIECE_BYTES", 700)
    monkeypatch.setattr(data_sets, "UNHELD_BYTES", 700)
    store = Store(0)
    done = await asyncio.to_thread(get, archive, store, whole_study("g1"))

    assert (done.status, done.completed) == (0, 6)
    sent = {one.sop_instance_uid: one.dataset().PixelData for one in CT_STUDY}
    assert {str(ds.SOPInstanceUID): ds.PixelData for _, ds in store.got} == sent


async def test_a_patient_is_sent_whole(archive: Archive) -> None:
    """The patient root, with studies of several classes and forms."""
    store = Store(0)
    done = await asyncio.to_thread(
        get, archive, store, identifier("PATIENT", PatientID="G"), model=PATIENT_GET
    )

    assert (done.status, done.completed, len(store.uids)) == (0, 8, 8)


async def test_what_is_not_here_is_nothing_to_send(archive: Archive) -> None:
    """An unknown study is a success without sub-operations, as the standard has it."""
    done = await asyncio.to_thread(get, archive, Store(0), whole_study("nowhere"))

    assert (done.status, done.completed, done.failed, done.answers) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("stored", "syntaxes", "arrives"),
    [
        (J2K, [JPEG2000Lossless], str(JPEG2000Lossless)),
        (J2K, UNCOMPRESSED, EXPLICIT),
        (J2K, [IMPLICIT], IMPLICIT),
        (PACKED, UNCOMPRESSED, EXPLICIT),
    ],
    ids=["as-stored", "decoded", "decoded-implicit", "inflated"],
)
async def test_the_form_is_one_that_the_peer_takes(
    archive: Archive, stored: Instance, syntaxes: Any, arrives: str
) -> None:
    """As it is stored where that is accepted, else uncompressed, with the same pixels and the same UID."""
    store = Store(0)
    question = identifier("STUDY", StudyInstanceUID=str(stored.dataset().StudyInstanceUID))
    done = await asyncio.to_thread(get, archive, store, question, syntaxes=syntaxes)

    assert (done.status, done.completed) == (0, 1)
    ((syntax, ds),) = store.got
    ds.file_meta = pynetdicom.dsutils.create_file_meta(
        sop_class_uid=CT, sop_instance_uid=ds.SOPInstanceUID, transfer_syntax=syntax
    )
    assert (syntax, str(ds.SOPInstanceUID)) == (arrives, stored.sop_instance_uid)
    assert (ds.pixel_array == stored.dataset().pixel_array).all()


async def test_what_the_peer_does_not_take_is_counted_and_named(archive: Archive) -> None:
    """A class that was not negotiated, and a form that nothing can be brought into."""
    store = Store(0)
    question = identifier("PATIENT", PatientID="G")
    done = await asyncio.to_thread(get, archive, store, question, model=PATIENT_GET, classes=(CT,))
    assert (done.status, done.completed, done.failed) == (0xB000, 7, 1)
    assert done.listed == (MR_SLICE.sop_instance_uid,)

    done = await asyncio.to_thread(get, archive, Store(0), whole_study("g1"), syntaxes=[RLELossless])
    assert (done.status, done.completed, done.failed, len(done.listed)) == (0xA702, 0, 6, 6)


async def test_the_peers_own_refusals_and_warnings_are_counted(archive: Archive) -> None:
    """A failure and a warning among six: B000 with both in the counts."""
    first, second = CT_STUDY[0].sop_instance_uid, CT_STUDY[1].sop_instance_uid
    store = Store(0, refuses={first: 0xA700, second: 0xB000})
    done = await asyncio.to_thread(get, archive, store, whole_study("g1"))

    assert (done.status, done.completed, done.failed, done.warning) == (0xB000, 4, 1, 1)
    assert done.listed == (first,)


@pytest.mark.parametrize("how", ["get", "move"])
async def test_a_cancel_stops_the_sending(archive: Archive, how: str) -> None:
    """After the first answer, the second instance is on its way at most; the rest remains."""
    (port,) = free_ports(1)
    cancels = Event_()
    if how == "get":
        store = Store(0)
        done = await asyncio.to_thread(get, archive, store, whole_study("g1"), cancels=cancels)
    else:
        await archive.register(READING_ROOM, ["query", "retrieve"], port=port)
        with destination(port, waits=cancels) as store:
            done = await asyncio.to_thread(move, archive, whole_study("g1"), READING_ROOM, cancels=cancels)

    assert done.status == 0xFE00
    assert done.completed == len(store.uids) < len(CT_STUDY)


@pytest.mark.requirement("F4")
async def test_a_device_that_takes_its_time_leaves_turns_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has asked for more than there are turns and answers nothing; another device is served."""
    monkeypatch.setattr(retrieve, "AT_ONCE", 2)
    monkeypatch.setattr(retrieve, "AT_ONCE_OF_ONE", 1)
    go_on = Event_()

    class Slow(Store):
        def take(self, event: Event) -> int:
            go_on.wait(30)
            return super().take(event)

    async with archive_in(tmp_path) as archive:
        await archive.node.store(RADIOLOGY)
        question = whole_study("g5")
        slow = [asyncio.create_task(asyncio.to_thread(get, archive, Slow(0), question)) for _ in range(3)]
        try:
            async with asyncio.timeout(20):
                while len(archive.gate.associations) < 3:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
                done = await asyncio.to_thread(get, archive, Store(0), question, calling=READING_ROOM)
        finally:
            go_on.set()
        assert (done.status, done.completed) == (0, 1)
        assert [one.completed for one in await asyncio.gather(*slow)] == [1, 1, 1]


@pytest.mark.requirement("V4")
async def test_move_sends_to_a_registered_device(archive: Archive) -> None:
    """On an association of its own, naming who asked; on record for whom, to whom and how much."""
    (port,) = free_ports(1)
    await archive.register(READING_ROOM, ["query", "retrieve"], port=port)
    with destination(port) as store:
        done = await asyncio.to_thread(move, archive, whole_study("g1"), READING_ROOM)

        assert done == Outcome(0, "", 6, 0, 0, (), 7)
        assert store.uids == {one.sop_instance_uid for one in CT_STUDY}
        assert store.originators == {(WORKSTATION, 1)}
    opened = (await archive.node.events(EventKind.STUDY_OPENED))[-1].event
    closed = (await archive.node.events(EventKind.STUDY_DOWNLOADED))[-1].event
    assert (opened.actor, opened.detail["to"]) == (f"device:{WORKSTATION}", f"device:{READING_ROOM}")
    assert (closed.detail["instances"], closed.detail["to"]) == (6, f"device:{READING_ROOM}")


@pytest.mark.requirement("T1", "C1")
async def test_move_over_tls_goes_to_the_registered_certificate_alone(archive: Archive) -> None:
    """Asked over TLS, and sent over TLS to a store that shows its certificate; to one that shows another's nothing is sent."""
    (port,) = free_ports(1)
    asker = await archive.register_secure("WS7", ["query", "retrieve"])
    store = await archive.register_secure("STORE7", ["retrieve"], port=port)
    other = await archive.register_secure("STORE8", ["retrieve"], port=port)
    authority = archive.node.identity.authority_pem

    async def moved(shown: KeyPair) -> tuple[Outcome, set[str]]:
        with destination(port, tls=dicom_server_context(shown, [authority])) as there:
            done = await asyncio.to_thread(
                move, archive, whole_study("g1"), "STORE7", calling="WS7", tls=asker
            )
            return done, there.uids

    assert await moved(store) == (Outcome(0, "", 6, 0, 0, (), 7), {one.sop_instance_uid for one in CT_STUDY})
    refused, got = await moved(other)
    assert (refused.status, refused.completed, got) == (0x0124, 0, set())


@pytest.mark.requirement("U1", "T1", "V4")
@pytest.mark.parametrize(
    ("name", "to", "status", "words"),
    [
        ("g1", "STRANGER", 0xA801, "No device of this AE title is registered here."),
        ("g1", "CT9", 0xA801, "registered without address and port"),
        ("g1", "OFF", 0xA801, "in state maintenance"),
        ("g1", "GONE", 0xA702, "cannot be reached"),
        ("g1", "SENDER", 0x0124, "not registered to retrieve"),
        ("g1", "RAD", 0x0124, "another department"),
    ],
)
async def test_move_goes_to_no_other(archive: Archive, name: str, to: str, status: int, words: str) -> None:
    """Unknown, without a port, out of use, away, not registered to retrieve, of another department."""
    (port,) = free_ports(1)
    await archive.register("CT9", ["query", "retrieve"])
    await archive.register("GONE", ["query", "retrieve"], port=port)
    await archive.register("SENDER", ["store"], port=port)
    await archive.register("RAD", ["query", "retrieve"], port=port, department="RADIOLOGY")
    if to == "OFF":
        await archive.register("OFF", ["query", "retrieve"], port=port)
        await archive.node.registry.set_device_state("OFF", DeviceState.MAINTENANCE)
    done = await asyncio.to_thread(move, archive, whole_study(name), to)

    assert done.status == status and words in done.words
    if status in (0xA801, 0x0124):
        refused = (await archive.node.events(EventKind.ACCESS_REFUSED))[-1].event
        assert words in refused.reason


@pytest.mark.requirement("U1")
async def test_get_is_for_devices_that_are_registered_for_it(archive: Archive) -> None:
    """A scanner gets nothing; a reading room gets its own department's studies."""
    for calling, name, status in (
        (SCANNER, "g1", 0x0124),
        (READING_ROOM, "g5", 0),
        (READING_ROOM, "g6", 0x0124),
    ):
        await archive.register(READING_ROOM, ["query", "retrieve"], department="RADIOLOGY")
        store = Store(0)
        done = await asyncio.to_thread(get, archive, store, whole_study(name), calling=calling)
        assert done.status == status
        assert len(store.got) == (status == 0)


@pytest.mark.requirement("U1", "V3", "T1")
async def test_a_restricted_study_is_answered_for_as_one_that_is_not_here(archive: Archive) -> None:
    """A device of no department, which may see strangers, gets the same answer to both; the record has the reason."""
    (port,) = free_ports(1)
    await archive.register("GONE", ["query", "retrieve"], port=port)
    store = Store(0)
    for name in ("g6", "nowhere"):
        before = len(await archive.node.events(EventKind.ACCESS_REFUSED))
        got = await asyncio.to_thread(get, archive, store, whole_study(name))
        moved = await asyncio.to_thread(move, archive, whole_study(name), "GONE")
        assert got == moved == Outcome(0, "", 0, 0, 0, (), 1)
        refused = (await archive.node.events(EventKind.ACCESS_REFUSED))[before:]
        assert len(refused) == (2 if name == "g6" else 0)
        assert all("opened by a person" in entry.event.reason for entry in refused)
    assert not store.got


@pytest.mark.requirement("C3", "F4")
async def test_an_instance_that_is_not_what_arrived_is_not_sent(archive: Archive) -> None:
    """One altered byte: that instance fails, the others come, and the alarm is on record."""
    made = study(name="broken", slices=3)
    await archive.node.store(*made)
    name = archive.node.index.pseudonyms.study(uid("broken"))
    row = (await archive.node.index.instances(name))[1]
    (pack,) = [path for path in archive.node.path.rglob(f"*{name}*") if path.is_file()]
    data = bytearray(pack.read_bytes())
    data[row.data_set.offset + row.data_set.length // 2] ^= 1
    pack.write_bytes(data)
    store = Store(0)
    done = await asyncio.to_thread(get, archive, store, whole_study("broken"))

    assert (done.status, done.completed, done.failed) == (0xB000, 2, 1)
    assert done.listed == (row.sop_instance_uid,)
    assert await archive.node.events(EventKind.INTEGRITY_FAILED)


@pytest.mark.requirement("F4")
async def test_a_destination_that_leaves_in_the_middle_fails_the_rest(archive: Archive) -> None:
    """What was taken counts as sent, everything after it as failed; the asker is told."""
    (port,) = free_ports(1)
    await archive.register(READING_ROOM, ["query", "retrieve"], port=port)
    with destination(port, leaves_after=2) as store:
        done = await asyncio.to_thread(move, archive, whole_study("g1"), READING_ROOM)

    assert (done.status, done.completed, done.failed) == (0xB000, 2, 4)
    assert len(store.got) == 2
