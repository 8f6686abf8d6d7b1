"""Our sender against our own door, DCMTK's storescp, and peers that misbehave."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from consent.errors import Denied, Invalid, Unavailable
from node.dicom import requestor
from node.dicom.messages import Command, Verb
from node.dicom.pdu import MAX_CONTEXTS, Abort, Answer, AssociateAc, encode
from node.dicom.sender import Outgoing, Peer, Sent, echo, outgoing, send, send_files, status_words
from node.ports import free_ports
from tests.node.dicom.conftest import Door
from tests.support.dicom import IMPLICIT, Instance, ct_slice, pydicom_sample_paths, pydicom_samples, study


def _memory(instance: Instance) -> Outgoing:
    return Outgoing(
        "memory",
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
        data=instance.data,
    )


def _peer(door: Door, **more: object) -> Peer:
    return Peer("127.0.0.1", door.port, **{"called": "NODE", "calling": "CT1", **more})  # type: ignore[arg-type]


async def _all(peer: Peer, *instances: Instance) -> list[Sent]:
    return [sent async for sent in send(peer, [_memory(one) for one in instances])]


async def test_data_sets_go_out_as_they_are(door: Door) -> None:
    """What arrives is byte for byte what was given, in its own transfer syntax."""
    instances = [*study(slices=3, size=300), ct_slice(number=9, transfer_syntax=IMPLICIT)]
    assert all(sent.ok and sent.status == 0 for sent in await _all(_peer(door), *instances))
    assert [bytes(a.data) for a in door.shelf.arrivals] == [one.data for one in instances]
    assert door.shelf.arrivals[-1].transfer_syntax_uid == IMPLICIT


async def test_empty_data_set_is_sent_as_one(door: Door) -> None:
    """Nothing in it: the peer gets the message, and says what it thinks of it, instead of waiting for more."""
    one = ct_slice()
    empty = Instance(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, b"")
    async with asyncio.timeout(5):
        (sent,) = await _all(_peer(door), empty)
    assert sent.status is not None


async def test_real_studies_from_files(door: Door) -> None:
    """The CT, MR and CR studies inside pydicom, as files and folders."""
    folder = pydicom_sample_paths()[0].parents[1]
    sent = [one async for one in send_files(_peer(door), [folder])]
    assert sent and all(one.ok for one in sent)
    expected = {one.sop_instance_uid for one in pydicom_samples()}
    assert {a.sop_instance_uid for a in door.shelf.arrivals} <= expected


async def test_files_that_are_no_dicom_are_reported_and_the_rest_sent(door: Door, tmp_path: Path) -> None:
    """One bad file does not stop the others."""
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.dcm").write_bytes(ct_slice().file())
    sent = {Path(one.label).name: one async for one in send_files(_peer(door), [tmp_path])}
    assert (
        not sent["a.txt"].ok and sent["a.txt"].status is None and "Not a DICOM file" in sent["a.txt"].reason
    )
    assert sent["b.dcm"].ok


async def test_refusal_of_one_says_why_and_the_others_go_on(door: Door) -> None:
    """Status and the peer's comment come back for each instance."""
    door.shelf.error = Invalid("The study UID is missing.")
    (refused,) = await _all(_peer(door), ct_slice())
    assert (refused.ok, refused.status) == (False, 0xC000)
    assert "The study UID is missing." in refused.reason


async def test_unknown_sop_class_is_reported_not_sent(door: Door) -> None:
    """No context, no data on the wire."""
    odd = Instance("1.2.3.4", "1.2.3.4.5", IMPLICIT, b"")
    (sent, other) = await _all(_peer(door), odd, ct_slice())
    assert (sent.ok, sent.status) == (False, None) and "SOP class" in sent.reason
    assert other.ok


@pytest.mark.parametrize(
    ("fields", "words"), [({"called": "X"}, "the one called"), ({"calling": "X"}, "calling AE")]
)
async def test_rejection_is_said_in_words(door: Door, fields: dict[str, str], words: str) -> None:
    """Which AE title was wrong."""
    with pytest.raises(Denied, match=words):
        await _all(_peer(door, **fields), ct_slice())


async def test_more_kinds_than_one_association_carries(door: Door) -> None:
    """129 pairs of SOP class and transfer syntax take a second association."""
    kinds = [Instance(f"1.2.3.{n}", f"1.2.4.{n}", IMPLICIT, b"") for n in range(MAX_CONTEXTS)]
    sent = await _all(_peer(door), *kinds, ct_slice())
    assert len(sent) == MAX_CONTEXTS + 1 and sent[-1].ok
    assert len(door.journal.events) == 2


async def test_echo(door: Door) -> None:
    """C-ECHO through the whole stack."""
    await echo(_peer(door))
    with pytest.raises(Denied):
        await echo(_peer(door, calling="STRANGER"))


async def test_nobody_there() -> None:
    """A closed port is Unavailable with what to check."""
    with socket.socket() as deaf:  # bound, so that it is nobody else's, and never listening
        deaf.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await echo(Peer("127.0.0.1", deaf.getsockname()[1], "NODE", "CT1"))


async def test_tls_against_a_plain_port(door: Door) -> None:
    """The failure names TLS."""
    with pytest.raises(Unavailable):
        await echo(_peer(door, tls=ssl.create_default_context(), name="node"))


@pytest.mark.parametrize(
    "answers",
    [
        [b""],
        [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
        [encode(Abort(2, 0))],
        [encode(AssociateAc("NODE", "CT1", (Answer(1, 0, "1.2.840.10008.1.2"),))), encode(Abort(2, 0))],
        [encode(AssociateAc("NODE", "CT1", (Answer(1, 0, "1.2.840.10008.1.2"),))), b"\x04\0\xff\xff\xff\xff"],
        [encode(AssociateAc("NODE", "CT1", (Answer(1, 0, "1.2.840.10008.1.2"),))), b""],
    ],
    ids=["closes", "http", "aborts", "aborts later", "absurd length", "closes later"],
)
async def test_peer_that_misbehaves_is_unavailable(answers: list[bytes]) -> None:
    """Whatever the peer does, the sender ends with one clear error."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for data in answers:
            await reader.read(65536)
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await echo(Peer("127.0.0.1", port, "NODE", "CT1"))


async def test_silent_peer_runs_into_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(requestor, "ANSWER_SECONDS", 0.1)
    server = await asyncio.start_server(lambda r, w: asyncio.sleep(5), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="in time"):
            await echo(Peer("127.0.0.1", port, "NODE", "CT1"))


def test_head_of_a_file_is_enough(tmp_path: Path) -> None:
    """Choosing contexts does not read the pixels."""
    path = tmp_path / "one.dcm"
    path.write_bytes(ct_slice().file())
    found = outgoing(path)
    assert found.read() == ct_slice().data
    with pytest.raises(Unavailable):
        outgoing(tmp_path / "none.dcm")


@pytest.mark.skipif(shutil.which("storescp") is None, reason="DCMTK is not installed")
async def test_dcmtk_receives_what_we_send(tmp_path: Path) -> None:
    """An independent receiver takes our association, our fragments and our release."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        "storescp", "-q", "-aet", "SCP", "+B", "-od", str(tmp_path), str(port)
    )
    try:
        peer = Peer("127.0.0.1", port, "SCP", "CT1")
        for _ in range(50):
            try:
                await echo(peer)
                break
            except Unavailable:
                await asyncio.sleep(0.1)
        instances = study(slices=3, size=300)
        assert all(sent.ok for sent in await _all(peer, *instances))
    finally:
        process.terminate()
        await process.wait()
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert sorted(file[-len(instances[0].data) :] for file in files) == sorted(one.data for one in instances)


@pytest.mark.requirement("F4")
def test_a_peer_s_comment_steers_no_terminal() -> None:
    """It is shown to whoever sends."""
    answer = Command(Verb.C_STORE_RQ, 1, status=0xC000, comment="\x1b[2JNo\x07\r")
    assert status_words(answer).endswith(": [2JNo")
