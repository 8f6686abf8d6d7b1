"""Storage commitment: what is safe is said to be, to whom may ask, on this association or a later one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pynetdicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel
from sqlalchemy import text

from consent.errors import Denied, Invalid, Unavailable
from consent.vocabulary import EventKind
from node.dicom import commitment, commitment_forms, promises
from node.dicom.channel import Channel
from node.dicom.commitment_forms import Asked, Report, read_asked, read_report, write_asked, write_report
from node.dicom.commitment_request import commit
from node.dicom.destinations import CallableDevice, CallableDevices
from node.dicom.messages import Command
from node.dicom.sender import Outgoing, Peer, send
from node.ports import free_ports
from node.safety import Fate, Reference
from tests.node.dicom.archive import AE, SCANNER, UNCOMPRESSED, WORKSTATION, Archive, archive_in
from tests.node.dicom.test_identifiers import SYNTAXES
from tests.support.dicom import EXPLICIT, Instance, element, study, uid

MODEL = str(StorageCommitmentPushModel)
INSTANCE = "1.2.840.10008.1.20.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
pytestmark = [pytest.mark.requirement("F5"), pytest.mark.timeout(60)]


def references(*instances: Instance) -> list[Reference]:
    return [Reference(one.sop_class_uid, one.sop_instance_uid) for one in instances]


def scanner(archive: Archive, calling: str = SCANNER) -> Peer:
    return Peer("127.0.0.1", archive.port, AE, calling)


@pytest.mark.requirement("C3")
async def test_what_was_sent_is_committed_on_the_same_association(tmp_path: Path) -> None:
    """Our own sender asks at once after the last answer: everything is safe, and that it was said is on record."""
    made = study(slices=5)
    async with archive_in(tmp_path) as archive:
        out = [Outgoing("", CT, one.sop_instance_uid, EXPLICIT, data=one.data) for one in made]
        sent = [one async for one in send(scanner(archive), out)]
        report = await commit(scanner(archive), [one.reference for one in sent], seconds=10)

        assert set(report.safe) == set(references(*made)) and not report.failed
        assert not (await archive.promises.due(archive.node.clock.now() + timedelta(days=9), 9)).promises
        (entry,) = await archive.node.events(EventKind.STORAGE_COMMITTED)
        assert entry.event.actor == f"device:{SCANNER}"
        assert entry.event.detail == {"instances": 5, "safe": 5}


@pytest.mark.requirement("C3", "F4")
async def test_only_what_lies_whole_in_its_pack_is_committed(tmp_path: Path) -> None:
    """Never sent, another class, a pack that is gone: each has the standard's reason."""
    here, lost = study(name="here", slices=1), study(name="lost", slices=1)
    async with archive_in(tmp_path) as archive:
        await archive.node.store(*here, *lost)
        name = archive.node.index.pseudonyms.study(uid("lost"))
        for path in archive.node.path.rglob(f"*{name}*"):
            if path.is_file():
                path.unlink()
        wanted = [
            *references(*here, *lost),
            Reference(CT, "1.2.3.4"),
        ]
        report = await commit(scanner(archive), wanted, seconds=10)
        other = await commit(
            scanner(archive), [Reference("1.2.840.10008.5.1.4.1.1.4", wanted[0][1])], seconds=10
        )

    assert report.safe == tuple(references(*here))
    assert report.failed == {wanted[1]: Fate.UNREADABLE, wanted[2]: Fate.NOT_HERE}
    assert list(other.failed.values()) == [Fate.OTHER_CLASS]


@pytest.mark.requirement("U1", "V4")
async def test_who_may_not_ask_is_told_so(tmp_path: Path) -> None:
    """A workstation registered to query is refused, and that is on record."""
    async with archive_in(tmp_path) as archive:
        with pytest.raises(Denied, match="not registered to ask"):
            await commit(scanner(archive, WORKSTATION), [Reference(CT, "1.2.3")], seconds=5)
        (entry,) = await archive.node.events(EventKind.ACCESS_REFUSED)
        assert entry.event.actor == f"device:{WORKSTATION}"


@dataclass
class Modality:
    """A device that asks and leaves, and listens for the report."""

    reports: list[tuple[int, Dataset]] = field(default_factory=list)

    def take(self, event: Event) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return 0, None


@contextmanager
def modality(port: int) -> Iterator[Modality]:
    """Listening as a commitment SCU."""
    made = Modality()
    entity = pynetdicom.AE(SCANNER)
    entity.add_supported_context(MODEL, UNCOMPRESSED, scu_role=False, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, made.take)]
    )
    try:
        yield made
    finally:
        server.shutdown()


def ask_and_leave(archive: Archive, *wanted: Reference, **changes: Any) -> int:
    """N-ACTION and release; blocks. Returns the status of the answer."""
    asked = Dataset()
    asked.TransactionUID = uid("transaction")
    asked.ReferencedSOPSequence = []
    for one in wanted:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one
        asked.ReferencedSOPSequence.append(item)
    association = archive.associate([MODEL], calling=SCANNER)
    try:
        call = {"dataset": asked, "action_type": 1, "class_uid": MODEL, "instance_uid": INSTANCE} | changes
        status, _ = association.send_n_action(**call)
        return int(status.Status)
    finally:
        association.release()


async def test_a_report_that_takes_long_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the peer takes it on its association the duty does not call it with the same, though it is due."""
    monkeypatch.setattr(commitment, "FIRST_PAUSE", timedelta(0))
    called: list[str] = []

    async def counted(self: CallableDevices, ae_title: str) -> CallableDevice:
        called.append(ae_title)
        raise Unavailable("nobody is to be called")

    monkeypatch.setattr(CallableDevices, "callable", counted)
    asking = Channel.request
    async with archive_in(tmp_path) as archive:
        made = study(slices=1)
        await archive.node.store(*made)

        async def slowly(self: Channel, *args: Any) -> Command:
            await archive.commitment.deliver()
            return await asking(self, *args)

        monkeypatch.setattr(Channel, "request", slowly)
        report = await commit(scanner(archive), references(*made))
        assert len(report.safe) == 1 and not called
        await archive.commitment.deliver()
        assert not called


@pytest.mark.requirement("F4")
async def test_a_report_reaches_a_device_that_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not reachable, then the node restarts, then it listens: the report comes, once, on an association of its own."""
    monkeypatch.setattr(commitment, "HERE_AFTER_SECONDS", 1.0)
    (port,) = free_ports(1)
    made = study(slices=2)
    async with archive_in(tmp_path) as archive:
        await archive.register(SCANNER, ["store", "commit"], port=port)
        await archive.node.store(*made)
        wanted = [*references(*made), Reference(CT, "1.2.3")]
        assert await asyncio.to_thread(ask_and_leave, archive, *wanted) == 0
        archive.node.clock.tick(seconds=6)
        await archive.commitment.deliver()  # nobody listens there yet
        (owed,) = (await archive.promises.due(archive.node.clock.now() + timedelta(hours=1), 9)).promises
        assert owed.attempts == 1
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("node.db*"))
        assert not [one for one in (uid("transaction"), made[0].sop_instance_uid) if one.encode() in stored]
    async with archive_in(tmp_path) as archive:
        await archive.register(SCANNER, ["store", "commit"], port=port)
        with modality(port) as device:
            await archive.commitment.deliver()  # not due yet
            assert not device.reports
            archive.node.clock.tick(hours=1)
            await archive.commitment.deliver()
            await archive.commitment.deliver()
        ((event, told),) = device.reports
        assert event == 2 and told.TransactionUID == uid("transaction")
        assert {str(one.ReferencedSOPInstanceUID) for one in told.ReferencedSOPSequence} == {
            one.sop_instance_uid for one in made
        }
        (failed,) = told.FailedSOPSequence
        assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.2.3", 0x0112)


async def test_a_report_is_given_up_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a port cannot be called: after the last attempt the log says so and nothing is owed."""
    monkeypatch.setattr(commitment, "MAX_ATTEMPTS", 2)
    async with archive_in(tmp_path) as archive:
        now = archive.node.clock.now()
        await archive.promises.owe(SCANNER, Asked("1.2.3", (Reference(CT, "1.2.4"),)), now, now)
        for _ in range(2):
            await archive.commitment.deliver()
            archive.node.clock.tick(hours=2)
        assert not (await archive.promises.due(archive.node.clock.now(), 9)).promises
        (entry,) = await archive.node.events(EventKind.STORAGE_COMMITTED)
        assert "could not be delivered" in entry.event.reason and "1.2.4" not in repr(entry.event)


@pytest.mark.requirement("A1")
async def test_an_altered_promise_is_told_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row changed in the database is taken out once that is on record; the report behind it is still tried."""
    async with archive_in(tmp_path) as archive:
        now = archive.node.clock.now()
        for uid_ in ("1.2.3", "1.2.4"):
            await archive.promises.owe(SCANNER, Asked(uid_, (Reference(CT, "1.2.5"),)), now, now)
        async with archive.node.database.write() as tx:
            await tx.execute(text("UPDATE dicom_commitment SET sealed = x'00' WHERE rowid = 1"))

        async def full(*_: object) -> None:
            raise Unavailable("no space")

        with monkeypatch.context() as patched:
            patched.setattr(type(archive.node.log), "record", full)
            with pytest.raises(Unavailable):
                await archive.commitment.deliver()
        await archive.commitment.deliver()
        await archive.commitment.deliver()
        (entry,) = await archive.node.events(EventKind.STORAGE_COMMITTED)
        assert "altered" in entry.event.reason
        (left,) = (await archive.promises.due(now + timedelta(hours=1), 9)).promises
        assert left.attempts == 1


@pytest.mark.requirement("F4")
async def test_a_device_that_is_away_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called once, however much it is owed; the next look finds what is due to others."""
    monkeypatch.setattr(commitment, "DELIVERED_AT_ONCE", 2)
    called: list[str] = []
    callable_ = CallableDevices.callable

    async def counted(self: CallableDevices, ae_title: str) -> CallableDevice:
        called.append(ae_title)
        return await callable_(self, ae_title)

    monkeypatch.setattr(CallableDevices, "callable", counted)
    async with archive_in(tmp_path) as archive:
        now = archive.node.clock.now()
        for number in range(4):
            asked = Asked(f"1.2.{number}", (Reference(CT, "1.2.5"),))
            await archive.promises.owe(SCANNER, asked, now, now)
        await archive.promises.owe(WORKSTATION, Asked("1.2.9", (Reference(CT, "1.2.5"),)), now, now)
        await archive.commitment.deliver()
        await archive.commitment.deliver()
        assert called == [SCANNER, WORKSTATION]
        later = (await archive.promises.due(now + timedelta(hours=1), 9)).promises
        assert sorted(one.attempts for one in later) == [0, 0, 0, 1, 1]


async def test_a_device_is_owed_a_bounded_number_of_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than the bound is refused with 0213, and another device is not hurt."""
    monkeypatch.setattr(promises, "MAX_OWED", 1)
    monkeypatch.setattr(commitment, "HERE_AFTER_SECONDS", 0.5)
    async with archive_in(tmp_path) as archive:
        wanted = Reference(CT, "1.2.3")
        assert await asyncio.to_thread(ask_and_leave, archive, wanted) == 0
        assert await asyncio.to_thread(ask_and_leave, archive, wanted) == 0x0213


async def test_what_a_device_is_owed_is_bounded_in_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports that name much are refused before they are many; another device is not hurt, and room comes back."""
    monkeypatch.setattr(promises, "MAX_OWED_BYTES", 20_000)
    async with archive_in(tmp_path) as archive:
        now = archive.node.clock.now()
        owe = archive.promises.owe
        large = Asked("1.2.3", tuple(Reference(CT, f"1.2.{n}") for n in range(300)))
        first = await owe(SCANNER, large, now, now)
        with pytest.raises(Unavailable) as refused:
            await owe(SCANNER, large, now, now)
        assert refused.value.code == "too-many-owed"
        await owe(WORKSTATION, large, now, now)
        await archive.promises.kept(first)
        await owe(SCANNER, large, now, now)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"action_type": 2}, 0x0123),
        ({"instance_uid": "1.2.3"}, 0x0112),
        ({"dataset": Dataset()}, 0xC000),
    ],
    ids=["another-action", "another-instance", "no-transaction"],
)
async def test_requests_that_are_none_are_refused(
    tmp_path: Path, changes: dict[str, Any], status: int
) -> None:
    """Each for its own reason, before anything is owed."""
    if "dataset" in changes:
        changes["dataset"].ReferencedSOPSequence = []
    async with archive_in(tmp_path) as archive:
        assert await asyncio.to_thread(ask_and_leave, archive, Reference(CT, "1.2"), **changes) == status
        assert not (await archive.promises.due(archive.node.clock.now() + timedelta(days=1), 9)).promises


async def test_a_peer_that_never_reports_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a report in time nothing is safe."""
    monkeypatch.setattr(commitment, "HERE_AFTER_SECONDS", 0.8)
    async with archive_in(tmp_path) as archive:
        with pytest.raises(Unavailable, match="did not report"):
            await commit(scanner(archive), [Reference(CT, "1.2.3")], seconds=0.3)


# The data sets


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_forms_read_back(syntax: str) -> None:
    """Requests and reports in both encodings."""
    one, two = Reference(CT, "1.2.3"), Reference(CT, "1.2.4")
    asked = Asked("2.25.1", (one, two))
    report = Report("2.25.1", (one,), {two: 0x0112})

    assert read_asked(write_asked(asked, syntax), syntax) == asked
    assert read_report(write_report(report, syntax), syntax) == report


@pytest.mark.requirement("F4")
def test_what_a_report_names_as_safe_and_as_failed_is_not_safe() -> None:
    """Nothing is let go on the word of a peer that contradicts itself."""
    one, two = Reference(CT, "1.2.3"), Reference(CT, "1.2.4")
    said = write_report(Report("2.25.1", (one, two), {two: 0x0110}), EXPLICIT)
    assert read_report(said, EXPLICIT) == Report("2.25.1", (one,), {two: 0x0110})


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\0",
        element(0x00081195, b"UI", b"1.2.3\0"),
        element(0x00081195, b"UI", b"1.2.3\0") + element(0x00081199, b"SQ", b"\xfe\xff\0\xe0\0\0\0\0"),
        element(0x00081195, b"UI", b"1.2.3\0") + element(0x00081199, b"SQ", b"nonsense"),
        element(0x00081195, b"UI", b"1..3\0\0") + element(0x00081199, b"SQ", b""),
    ],
    ids=["nothing", "cut", "no-list", "empty-item", "no-items", "bad-uid"],
)
def test_malformed_requests_are_invalid(data: bytes) -> None:
    """Nothing is promised on what cannot be read."""
    with pytest.raises(Invalid):
        read_asked(data, EXPLICIT)


def test_a_request_names_a_bounded_number_of_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the bound is refused."""
    monkeypatch.setattr(commitment_forms, "MAX_REFERENCES", 2)
    data = write_asked(Asked("1.2", tuple(Reference(CT, f"1.2.{n}") for n in range(1, 4))), EXPLICIT)
    with pytest.raises(Invalid, match="At most 2"):
        read_asked(data, EXPLICIT)
