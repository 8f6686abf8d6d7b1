"""Commitment reports on an association of the archive's own: from our node, from pynetdicom, and from nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pynetdicom
import pytest
import pytest_asyncio
from pydicom.dataset import Dataset
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification

from consent.errors import Unavailable
from node.dicom import commitment, commitment_request, report_listener
from node.dicom.commitment_forms import Report
from node.dicom.commitment_request import commit
from node.dicom.messages import Command, Context, Message, Verb
from node.dicom.report_listener import ReportListener
from node.dicom.requestor import Peer
from node.identity import Identity
from node.ports import free_ports
from node.safety import Reference
from node.tls import KeyPair, dicom_client_context, dicom_server_context
from tests.node.dicom.archive import AE, SCANNER, UNCOMPRESSED, archive_in
from tests.support.dicom import EXPLICIT, Instance, study

MODEL, INSTANCE = str(StorageCommitmentPushModel), "1.2.840.10008.1.20.1.1"
CT = str(CTImageStorage)
TRANSACTION = "2.25.4711"
PEER = Peer("127.0.0.1", 104, "ARCHIVE", "CT1")
pytestmark = [pytest.mark.requirement("F5"), pytest.mark.timeout(60)]


def references(instances: Sequence[Instance]) -> list[Reference]:
    return [Reference(one.sop_class_uid, one.sop_instance_uid) for one in instances]


# Our own node


@pytest.mark.requirement("C3", "T1")
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_our_node_reports_on_an_association_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secured: bool
) -> None:
    """We ask and leave at once; the node calls us back, and its report is believed for what it names."""
    monkeypatch.setattr(commitment_request, "HERE_SECONDS", 0.0)
    monkeypatch.setattr(commitment, "HERE_AFTER_SECONDS", 1.0)
    made = study(slices=2)
    (port,) = free_ports(1)
    async with archive_in(tmp_path) as archive:
        await archive.node.store(*made)
        identity = archive.node.identity
        peer, tls = Peer("127.0.0.1", archive.port, AE, SCANNER), None
        if secured:
            own = await archive.register_secure(SCANNER, ["store", "commit"], port=port)
            client = dicom_client_context(own, [identity.authority_pem])
            peer = Peer("127.0.0.1", archive.tls_port, AE, SCANNER, client, name=archive.node.node_id)
            tls = dicom_server_context(own, [identity.authority_pem])
        else:
            await archive.register(SCANNER, ["store", "commit"], port=port)
        wanted = [*references(made), Reference(CT, "1.2.3")]
        async with ReportListener(peer, port, tls=tls) as reports:
            asking = asyncio.create_task(commit(peer, wanted, seconds=20, reports=reports))
            while not asking.done():
                await asyncio.sleep(0.05)
                archive.node.clock.tick(seconds=6)
                await archive.commitment.deliver()
            report = await asking
        assert not reports.turned_away
    assert set(report.safe) == set(references(made)) and set(report.failed) == {wanted[-1]}


async def test_a_report_on_the_same_association_is_taken_too(tmp_path: Path) -> None:
    """Who listens need not be called."""
    made = study(slices=2)
    (port,) = free_ports(1)
    async with archive_in(tmp_path) as archive:
        await archive.node.store(*made)
        peer = Peer("127.0.0.1", archive.port, AE, SCANNER)
        async with ReportListener(peer, port) as reports:
            report = await commit(peer, references(made), seconds=10, reports=reports)
    assert set(report.safe) == set(references(made))


async def test_an_archive_that_calls_nobody_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a report in time nothing is safe; the port is free again."""
    monkeypatch.setattr(commitment_request, "HERE_SECONDS", 0.1)
    monkeypatch.setattr(commitment, "HERE_AFTER_SECONDS", 1.0)
    (port,) = free_ports(1)
    async with archive_in(tmp_path) as archive:
        peer = Peer("127.0.0.1", archive.port, AE, SCANNER)
        for _ in range(2):
            async with ReportListener(peer, port) as reports:
                with pytest.raises(Unavailable, match="did not report in time"):
                    await commit(peer, [Reference(CT, "1.2.3")], seconds=0.3, reports=reports)
                with pytest.raises(Unavailable, match="listen on 127"):
                    await ReportListener(peer, port).__aenter__()


# An independent archive


@pytest_asyncio.fixture
async def listening() -> AsyncIterator[ReportListener]:
    async with ReportListener(PEER, 0) as listener:
        yield listener


def call(
    port: int, *contexts: str, calling: str = "ARCHIVE", called: str = "CT1", tls: KeyPair | None = None,
    authority: str = "",
) -> pynetdicom.association.Association:  # fmt: skip
    """An association as an archive opens it to report: requestor, and SCP of commitment. Blocks."""
    entity = pynetdicom.AE(calling)
    for one in contexts or (MODEL,):
        entity.add_requested_context(one, UNCOMPRESSED)
    context = None if tls is None else dicom_client_context(tls, [authority])
    return entity.associate(
        "127.0.0.1", port, ae_title=called, ext_neg=[pynetdicom.build_role(MODEL, scp_role=True)],
        tls_args=None if context is None else (context, None),
    )  # fmt: skip


def told(transaction: str = TRANSACTION, *safe: str) -> Dataset:
    """A report's data set."""
    report = Dataset()
    report.TransactionUID = transaction
    report.ReferencedSOPSequence = []
    for uid in safe:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
        report.ReferencedSOPSequence.append(item)
    return report


def say(port: int, data: Dataset, instance: str = INSTANCE, **more: object) -> int:
    """Report, and release; the status of the answer."""
    association = call(port, **more)  # type: ignore[arg-type]
    assert association.is_established
    try:
        status, _ = association.send_n_event_report(data, 1, MODEL, instance)
        return int(status.Status)
    finally:
        association.release()


@pytest.mark.requirement("C3")
async def test_only_the_report_that_is_waited_for_is_taken(listening: ReportListener) -> None:
    """Another transaction, another instance and a malformed one are refused, and what is waited for comes after them."""
    with listening.expecting(TRANSACTION) as report:
        for data, instance, status in (
            (told("2.25.1", "1.2.3"), INSTANCE, 0x0115),
            (told(TRANSACTION, "1.2.3"), "1.2.4", 0x0112),
            (Dataset(), INSTANCE, 0x0115),
        ):
            data.PatientComments = "x"
            assert await asyncio.to_thread(say, listening.port, data, instance) == status
            assert not report.done()
        assert await asyncio.to_thread(say, listening.port, told(TRANSACTION, "1.2.3")) == 0
        assert await report == Report(TRANSACTION, (Reference(CT, "1.2.3"),), {})
    assert await asyncio.to_thread(say, listening.port, told(TRANSACTION, "1.2.3")) == 0x0115


async def test_nothing_else_is_offered(listening: ReportListener) -> None:
    """Neither storage nor even verification; on the one context, no other operation."""

    def talk() -> list[str]:
        association = call(listening.port, CT, str(Verification), MODEL)
        try:
            return [str(one.abstract_syntax) for one in association.accepted_contexts]
        finally:
            association.release()

    assert await asyncio.to_thread(talk) == [MODEL]
    context = Context(1, MODEL, EXPLICIT)
    for verb in (Verb.N_ACTION_RQ, Verb.C_ECHO_RQ, Verb.C_STORE_RQ):
        assert listening.take(Message(Command(verb, 1, MODEL, INSTANCE), context)) == 0x0211


@pytest.mark.requirement("T1")
@pytest.mark.parametrize(
    ("names", "words"),
    [({"calling": "OTHER"}, 'called itself "OTHER"'), ({"called": "MR1"}, 'called "MR1"')],
    ids=["another-caller", "another-listener"],
)
async def test_another_caller_is_turned_away(
    listening: ReportListener, names: dict[str, str], words: str
) -> None:
    """And who waits is told who called."""
    association = await asyncio.to_thread(lambda: call(listening.port, **names))
    assert association.is_rejected and words in listening.turned_away


@pytest.mark.requirement("T1")
async def test_over_tls_only_the_peers_own_certificate_reports() -> None:
    """A device under the same authority, which says that it is the archive, is turned away; plain bytes get nowhere."""

    async def seed(name: str, size: int = 32) -> bytes:
        return name.encode().ljust(size, b".")[:size]

    now = datetime.now(UTC)
    identity = await Identity.load_or_create(seed, "x-archive", "Archive")
    authority = identity.authority_pem
    ours = identity.issue_device_certificate("CT1", now, serves=True)
    other = identity.issue_device_certificate("ARCHIVE", now)
    archive = identity.leaf(["127.0.0.1"], now)
    client, server = dicom_client_context(ours, [authority]), dicom_server_context(ours, [authority])
    peer = Peer("127.0.0.1", 2762, "ARCHIVE", "CT1", client, name="x-archive")
    with pytest.raises(ValueError, match="both over TLS"):
        ReportListener(peer, 0)
    async with ReportListener(peer, 0, tls=server) as listener:
        with listener.expecting(TRANSACTION) as report:
            port = listener.port
            turned = await asyncio.to_thread(lambda: call(port, tls=other, authority=authority))
            assert turned.is_rejected and "does not bear the name" in listener.turned_away
            plain = await asyncio.to_thread(lambda: call(port))
            assert not plain.is_established
            status = await asyncio.to_thread(
                lambda: say(port, told(TRANSACTION, "1.2.3"), tls=archive, authority=authority)
            )
            assert (status, report.done()) == (0, True)


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    "junk",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff", b"\x04\x00\x00\x00\x00\x06" + bytes(6),
     b"\x01\x00\x00\x00\x00\x04abcd", b"\x05\x00\x00\x00\x00\x04" + bytes(4), b"\x07\x00\x00\x00\x00\x04" + bytes(4)],
    ids=["nothing", "http", "absurd-length", "data-first", "no-request", "release-first", "abort-first"],
)  # fmt: skip
async def test_junk_is_ended_and_harms_nobody(listening: ReportListener, junk: bytes) -> None:
    """Whatever comes, the connection ends and the next report is taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
    writer.write(junk)
    writer.write_eof()
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    with listening.expecting(TRANSACTION):
        assert await asyncio.to_thread(say, listening.port, told(TRANSACTION, "1.2.3")) == 0


@pytest.mark.requirement("F4")
async def test_silent_and_many_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent are cut off after their deadline, and at once when there are more than a few."""
    monkeypatch.setattr(report_listener, "REQUEST_SECONDS", 0.5)
    async with ReportListener(PEER, 0) as listener, asyncio.timeout(10):
        callers = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(6)]
        for reader, _ in callers:
            try:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            except ConnectionResetError:
                pass
        for _, writer in callers:
            writer.close()


@pytest.mark.requirement("F4")
async def test_callers_that_say_nothing_keep_no_report_out() -> None:
    """Whoever holds every place in silence gives way to the peer."""
    async with ReportListener(PEER, 0) as listener, asyncio.timeout(10):
        callers = [
            await asyncio.open_connection("127.0.0.1", listener.port)
            for _ in range(report_listener.MAX_CONNECTIONS)
        ]
        with listener.expecting(TRANSACTION) as report:
            assert await asyncio.to_thread(say, listener.port, told(TRANSACTION, "1.2.3")) == 0
            assert report.done()
        for _, writer in callers:
            writer.close()
