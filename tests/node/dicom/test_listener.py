"""The DICOM door under good and bad peers: admission, order, bounds, deadlines, faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consent.errors import Unavailable
from consent.vocabulary import EventKind
from node.dicom.gate import Memory
from node.dicom.listener import Listener
from node.dicom.messages import Command, Verb, encode_request
from node.dicom.pdu import (
    Abort,
    AbortReason,
    AssociateAc,
    AssociateRj,
    Proposal,
    ReleaseRp,
    ReleaseRq,
    encode,
)
from tests.node.dicom.conftest import Door, OpenDoor
from tests.node.dicom.raw import (
    CONTEXTS,
    CT,
    VERIFICATION,
    Raw,
    data_pdu,
    eventually,
    request,
    store_command,
    store_message,
)
from tests.support.dicom import EXPLICIT, ct_slice, study
from tests.support.tls import self_signed

SLICE = ct_slice()
ECHO = data_pdu(3, encode_request(Command(Verb.C_ECHO_RQ, 7, VERIFICATION)), command=True, last=True)
pytestmark = pytest.mark.timeout(30)


async def test_instances_are_taken_as_sent_and_acknowledged(door: Door) -> None:
    """The data set's bytes and their digest reach ingest untouched; the answer is 0000."""
    async with Raw(door.port) as raw:
        assert isinstance(await raw.associate(), AssociateAc)
        raw.send(store_message(SLICE, 9))
        answer = await raw.response()
        assert (answer.verb, answer.message_id, answer.status) == (Verb.C_STORE_RSP, 9, 0)
        raw.send(ReleaseRq())
        assert await raw.pdu() == ReleaseRp()
    (arrival,) = door.shelf.arrivals
    assert bytes(arrival.data) == SLICE.data
    assert arrival.sha256 == SLICE.sha256
    assert (door.shelf.sources[0].principal.id, door.shelf.sources[0].channel) == ("CT1", "dimse")
    assert [event.kind for event in door.journal.events] == [EventKind.ASSOCIATION_ACCEPTED]
    assert door.gate.memory.held == 0


@pytest.mark.requirement("C3")
async def test_answer_waits_until_ingest_has_it(door: Door) -> None:
    """No 0000 before `receive` has returned: what is acknowledged is durable."""
    door.shelf.hold = asyncio.Event()
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(store_message(SLICE))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await raw.receive()
        door.shelf.hold.set()
        assert (await raw.response()).status == 0


async def test_pipelined_messages_are_answered_in_order(door: Door) -> None:
    """Twenty messages sent back to back, echoes between them, and the release: every answer, in order."""
    slices = study(slices=20)
    async with Raw(door.port) as raw:
        await raw.associate()
        for number, one in enumerate(slices, start=1):
            raw.send(store_message(one, number), ECHO)
        raw.send(ReleaseRq())
        answers = [await raw.response() for _ in range(40)]
        assert [a.message_id for a in answers[::2]] == list(range(1, 21))
        assert {a.verb for a in answers[1::2]} == {Verb.C_ECHO_RSP}
        assert await raw.pdu() == ReleaseRp()
    assert [a.sop_instance_uid for a in door.shelf.arrivals] == [one.sop_instance_uid for one in slices]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_bytes_may_come_in_any_pieces(door: Door, chunk: int) -> None:
    """Heads and bodies split anywhere."""
    async with Raw(door.port) as raw:

        async def trickle(stream: bytes) -> None:
            for start in range(0, len(stream), chunk):
                raw.send(stream[start : start + chunk])
                if start % 50 == 0:
                    await asyncio.sleep(0)

        await trickle(encode(request()))
        assert isinstance(await raw.pdu(), AssociateAc)
        await trickle(store_message(SLICE, piece=700))
        assert (await raw.response()).status == 0


async def test_command_and_data_may_share_a_pdu(door: Door) -> None:
    """PS3.8 Annex E allows several values in one P-DATA-TF, and commands in several."""
    command = store_command(SLICE)
    values = data_pdu(1, command[:20], command=True, last=False)[6:]
    values += data_pdu(1, command[20:], command=True, last=True)[6:]
    values += data_pdu(1, SLICE.data, command=False, last=True)[6:]
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(struct.pack(">BBI", 4, 0, len(values)) + values)
        assert (await raw.response()).status == 0


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"called": "OTHER"}, AssociateRj(1, 1, 7)),
        ({"calling": "STRANGER"}, AssociateRj(1, 1, 3)),
        ({"application_context": "1.2.840.10008.3.1.1.2"}, AssociateRj(1, 1, 2)),
        ({"protocol_version": 2}, AssociateRj(1, 2, 2)),
    ],
    ids=["called", "calling", "application-context", "version"],
)
async def test_refusals_use_the_standards_words(
    door: Door, fields: dict[str, object], expected: AssociateRj
) -> None:
    """Wrong AE titles and other protocols are rejected with result, source and reason, and logged."""
    async with Raw(door.port) as raw:
        assert await raw.associate(**fields) == expected
    await eventually(lambda: door.journal.events)
    (event,) = [e for e in door.journal.events if e.kind is EventKind.ASSOCIATION_REFUSED]
    assert event.address == "127.0.0.1" and event.reason and event.detail["calling"]
    assert not door.gate.associations


async def test_node_that_cannot_decide_now_rejects_for_now(door: Door) -> None:
    """A database that cannot answer is a transient rejection."""
    door.devices.error = Unavailable("The database cannot answer.")
    async with Raw(door.port) as raw:
        assert await raw.associate() == AssociateRj(2, 3, 1)


async def test_contexts_are_answered_one_by_one(door: Door) -> None:
    """What is not spoken is refused, the rest is accepted."""
    contexts = (
        *CONTEXTS,
        Proposal(5, "1.2.840.10008.5.1.4.31", (EXPLICIT,)),
        Proposal(7, CT, ("1.2.3",)),
    )
    async with Raw(door.port) as raw:
        answer = await raw.associate(contexts=contexts)
        assert isinstance(answer, AssociateAc)
        assert [a.result for a in answer.answers] == [0, 0, 3, 4]


async def test_associations_are_capped_per_peer_and_in_total(open_door: OpenDoor) -> None:
    """The one too many is rejected for now, and the next after a release is taken."""
    door = await open_door(associations=2, associations_per_peer=2)
    async with Raw(door.port) as first, Raw(door.port) as second, Raw(door.port) as third:
        assert isinstance(await first.associate(), AssociateAc)
        assert isinstance(await second.associate(), AssociateAc)
        assert len(door.gate.associations) == 2
        assert await third.associate() == AssociateRj(2, 3, 2)
        first.send(ReleaseRq())
        assert await first.pdu() == ReleaseRp()
        await eventually(lambda: len(door.gate.associations) == 1)
        async with Raw(door.port) as fourth:
            assert isinstance(await fourth.associate(), AssociateAc)
    await eventually(lambda: door.journal.codes() == ["too-many-associations"])


async def test_connections_are_capped_before_they_cost(open_door: OpenDoor) -> None:
    """Connections past the cap are closed unread; the others still work."""
    door = await open_door(connections=3)
    sockets = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(3)]
    async with Raw(door.port) as raw:
        assert await raw.associate() is None
    sockets[0][1].close()
    await eventually(lambda: not door.gate.connection_refusal("127.0.0.1"))
    async with Raw(door.port) as raw:
        assert isinstance(await raw.associate(), AssociateAc)
    for _, writer in sockets:
        writer.close()


async def test_silence_before_the_request_ends_the_connection(open_door: OpenDoor) -> None:
    """ARTIM: who connects and says nothing is put out, and that is written down."""
    door = await open_door(artim_seconds=0.1)
    async with Raw(door.port) as raw:
        assert await raw.pdu() is None
    await eventually(lambda: door.journal.codes() == ["no-request"])


async def test_half_a_request_ends_the_connection_too(open_door: OpenDoor) -> None:
    """Bytes that trickle do not stop the timer."""
    door = await open_door(artim_seconds=0.2)
    async with Raw(door.port) as raw:
        raw.send(encode(request())[:30])
        assert await raw.pdu() is None


async def test_idle_association_is_aborted(open_door: OpenDoor) -> None:
    """Silence after the association began ends it with an A-ABORT."""
    door = await open_door(idle_seconds=0.1)
    async with Raw(door.port) as raw:
        await raw.associate()
        assert await raw.pdu() == Abort(0, 0)
    await eventually(lambda: door.journal.codes(EventKind.INPUT_REFUSED) == ["idle"])


async def test_slow_ingest_is_not_idleness(open_door: OpenDoor) -> None:
    """The clock does not run against a peer that waits for us."""
    door = await open_door(idle_seconds=0.1)
    door.shelf.hold = asyncio.Event()
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(store_message(SLICE))
        await asyncio.sleep(0.4)
        door.shelf.hold.set()
        assert (await raw.response()).status == 0


@pytest.mark.parametrize(
    ("name", "stream", "expected"),
    [
        ("data first", ECHO, Abort(0, 0)),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Abort(0, 0)),
        ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Abort(0, 0)),
        ("4 GiB request", struct.pack(">BBI", 1, 0, 0xFFFFFFFF), Abort(0, 0)),
        ("noise", bytes(range(256)), Abort(0, 0)),
        ("release first", encode(ReleaseRq()), Abort(0, 0)),
    ],
)
async def test_nonsense_instead_of_a_request_is_aborted(
    door: Door, name: str, stream: bytes, expected: Abort
) -> None:
    """Other protocols, other PDUs and absurd lengths end the connection; the door stays open."""
    async with Raw(door.port) as raw:
        raw.send(stream)
        assert await raw.pdu() == expected
    async with Raw(door.port) as raw:
        assert isinstance(await raw.associate(), AssociateAc)


COMMAND = store_command(SLICE)
INVALID, UNEXPECTED = AbortReason.INVALID_PARAMETER, AbortReason.UNEXPECTED_PARAMETER


@pytest.mark.parametrize(
    ("name", "stream", "reason"),
    [
        ("4 GiB PDU", struct.pack(">BBI", 4, 0, 0xFFFFFFFF), INVALID),
        ("PDU past the bound", struct.pack(">BBI", 4, 0, 131_073), INVALID),
        ("value past its PDU", struct.pack(">BBIIBB", 4, 0, 10, 100, 1, 3) + bytes(4), INVALID),
        ("empty P-DATA", struct.pack(">BBI", 4, 0, 0), INVALID),
        ("unknown PDU type", struct.pack(">BBI", 9, 0, 4) + bytes(4), AbortReason.UNRECOGNIZED_PDU),
        ("second request", encode(request()), AbortReason.UNEXPECTED_PDU),
        ("release response", encode(ReleaseRp()), AbortReason.UNEXPECTED_PDU),
        ("context not accepted", data_pdu(99, COMMAND, command=True, last=True), INVALID),
        ("data before a command", data_pdu(1, b"ab", command=False, last=True), UNEXPECTED),
        ("two commands", data_pdu(1, COMMAND, command=True, last=True) * 2, UNEXPECTED),
        (
            "context changes",
            data_pdu(1, COMMAND, command=True, last=True) + data_pdu(3, b"ab", command=False, last=False),
            INVALID,
        ),
        ("command is noise", data_pdu(1, b"\xff" * 40, command=True, last=True), INVALID),
        ("command is empty", data_pdu(1, b"", command=True, last=True), INVALID),
        ("command without end", data_pdu(1, bytes(9000), command=True, last=False) * 2, INVALID),
        (
            "path in a UID",
            data_pdu(1, store_command(SLICE, sop_instance_uid="../../x"), command=True, last=True),
            INVALID,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_broken_protocol_is_aborted_with_its_reason(
    door: Door, name: str, stream: bytes, reason: AbortReason
) -> None:
    """Every break of the protocol inside an association: A-ABORT, a log entry, and nothing stored."""
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(stream)
        assert await raw.pdu() == Abort(2, reason)
    await eventually(lambda: door.journal.codes(EventKind.INPUT_REFUSED))
    assert not door.shelf.arrivals
    assert door.gate.memory.held == 0
    async with Raw(door.port) as raw:
        assert isinstance(await raw.associate(), AssociateAc)


@pytest.mark.parametrize("how", ["abort", "close", "reset", "release"])
async def test_cut_in_mid_instance_keeps_nothing_of_it(door: Door, how: str) -> None:
    """Half an instance is never handed on, its memory is freed, and that it was cut is written down."""
    half = store_message(SLICE)[: len(SLICE.data) // 2]
    whole = ct_slice(number=2)
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(store_message(whole))
        assert (await raw.response()).status == 0
        raw.send(half[: 6 + struct.unpack(">I", half[2:6])[0]], data_pdu(1, b"ab", command=False, last=False))
        await asyncio.sleep(0.05)
        if how == "abort":
            raw.send(Abort())
        elif how == "release":
            raw.send(ReleaseRq())
            assert await raw.pdu() == ReleaseRp()
        elif how == "reset":
            linger = struct.pack("ii", 1, 0)
            raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await eventually(lambda: "cut-short" in door.journal.codes(EventKind.INPUT_REFUSED))
    await eventually(lambda: not door.gate.associations)
    assert [a.sop_instance_uid for a in door.shelf.arrivals] == [whole.sop_instance_uid]
    assert door.gate.memory.held == 0


async def test_instance_past_its_bound_is_refused_and_the_next_taken(open_door: OpenDoor) -> None:
    """The rest of it is read past; A700 says why; the association lives on."""
    door = await open_door(instance_bytes=4096)
    big, small = ct_slice(size=128), ct_slice(number=2, size=16)
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(store_message(big, 1), store_message(small, 2))
        refused, taken = await raw.response(), await raw.response()
    assert (refused.status, taken.status) == (0xA700, 0)
    assert "larger than" in refused.comment
    assert len(door.shelf.arrivals) == 1
    assert door.gate.memory.held == 0


async def test_full_memory_makes_senders_wait_and_loses_nothing(open_door: OpenDoor) -> None:
    """With room for three instances, eight senders take turns and all are stored."""
    slices = study(slices=8, size=64)
    door = await open_door(memory_bytes=3 * len(slices[0].data))
    peak = 0

    async def one(number: int) -> int:
        nonlocal peak
        async with Raw(door.port) as raw:
            await raw.associate()
            raw.send(store_message(slices[number], piece=500))
            answer = await raw.response()
            peak = max(peak, door.gate.memory.held)
            return answer.status

    statuses = await asyncio.gather(*map(one, range(8)))
    assert peak <= door.gate.memory.limit
    stored = [a.sop_instance_uid for a in door.shelf.arrivals]
    assert statuses.count(0) == len(stored)
    assert set(statuses) <= {0, 0xA700} and statuses.count(0) >= 3
    assert door.gate.memory.held == 0


async def test_waiting_message_queue_is_bounded(open_door: OpenDoor) -> None:
    """A sender that does not wait for answers is not read faster than it is served."""
    door = await open_door(queued_messages=2)
    door.shelf.hold = asyncio.Event()
    slices = study(slices=10)
    async with Raw(door.port) as raw:
        await raw.associate()
        for number, one in enumerate(slices, start=1):
            raw.send(store_message(one, number))
        await asyncio.sleep(0.1)
        assert door.gate.memory.held <= 3 * (len(slices[0].data) + 400)
        door.shelf.hold.set()
        assert [(await raw.response()).message_id for _ in slices] == list(range(1, 11))


def test_memory_refuses_to_wait_for_nobody() -> None:
    """When all others wait too, waiting would be for ever."""
    memory, woken = Memory(100), []
    assert memory.reserve("a", 60) and not memory.reserve("b", 60)
    assert memory.wait("b", lambda: woken.append("b"), busy=False)
    assert not memory.wait("a", lambda: woken.append("a"), busy=False)
    assert memory.wait("a", lambda: woken.append("a"), busy=True)
    memory.release("a", 60)
    assert (memory.held, sorted(woken)) == (0, ["a", "b"])


async def test_refusals_are_counted_always_and_logged_once_a_minute(door: Door) -> None:
    """A flood of refused peers cannot flood the log."""
    for _ in range(5):
        async with Raw(door.port) as raw:
            await raw.associate(calling="STRANGER")
    await eventually(lambda: door.journal.codes())
    registry = door.gate.metrics.registry
    assert registry.get_sample_value("accord_dicom_refused_total", {"reason": "device-refused"}) == 5
    assert len(door.journal.codes()) == 1
    door.gate.clock.tick(seconds=61)  # type: ignore[attr-defined]
    async with Raw(door.port) as raw:
        await raw.associate(calling="STRANGER")
    await eventually(lambda: len(door.journal.events) == 2)
    assert door.journal.events[-1].detail["unlogged"] == 4


async def test_small_maximum_length_is_kept_to(door: Door) -> None:
    """Answers are cut to what the peer takes."""
    async with Raw(door.port) as raw:
        await raw.associate(max_length=64)
        raw.send(ECHO)
        whole = b""
        while True:
            kind, body = await raw.receive()
            assert kind == 4 and len(body) <= 64
            whole += body[6:]
            if body[5] & 2:
                break
    assert whole.startswith(struct.pack("<HHI", 0, 0, 4))


async def test_stopping_answers_what_came_whole(open_door: OpenDoor) -> None:
    """A node that ends finishes the message in hand, then aborts."""
    door = await open_door()
    door.shelf.hold = asyncio.Event()
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(store_message(SLICE))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(door.listener.stop())
        await asyncio.sleep(0.05)
        door.shelf.hold.set()
        assert (await raw.response()).status == 0
        assert isinstance(await raw.pdu(), Abort)
        await stopping
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", door.port)


async def test_stopping_does_not_wait_for_the_silent(door: Door) -> None:
    """Connections without an association are closed at once."""
    async with Raw(door.port) as raw:
        async with asyncio.timeout(1):
            await asyncio.sleep(0.02)
            await door.listener.stop()
        assert await raw.pdu() is None


async def test_port_in_use_is_said_clearly(door: Door) -> None:
    """Which port, and what to do."""
    other = Listener(door.gate, door.journal, "127.0.0.1", door.port)
    with pytest.raises(Unavailable, match=str(door.port)):
        await other.start()


def test_tls_without_client_certificates_is_not_offered(door: Door, tmp_path: Path) -> None:
    """Anonymous TLS cannot be configured by mistake."""
    server, _ = self_signed(tmp_path)
    with pytest.raises(ValueError, match="mutual"):
        Listener(door.gate, door.journal, "127.0.0.1", 0, tls=server)


async def test_association_is_shown_while_it_lasts(door: Door) -> None:
    """Who is connected, since when, and what became of what it sent."""
    async with Raw(door.port) as raw:
        await raw.associate()
        raw.send(store_message(SLICE))
        await raw.response()
        (view,) = door.gate.associations
        assert (view.device, view.address, view.stored, view.tls) == ("CT1", "127.0.0.1", 1, False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=1, max_size=200), at=st.integers(0, 5000))
def test_fuzzed_streams_never_hurt_the_door(noise: bytes, at: int) -> None:
    """A valid stream with noise anywhere: an answer or an end, nothing false stored, no memory kept."""

    async def play() -> None:
        from node.dicom.gate import Gate, Limits
        from node.dicom.services import Services
        from tests.node.dicom.conftest import NODE_AE, Doorkeeper, Journal, Shelf
        from tests.support.clock import FakeClock

        shelf, journal = Shelf(), Journal()
        limits = Limits(artim_seconds=0.05, idle_seconds=0.1, stop_seconds=0.5)
        gate = Gate(Doorkeeper(), Services(shelf, journal), FakeClock(), NODE_AE, limits)
        async with Listener(gate, journal, "127.0.0.1", 0) as listener, Raw(listener.port) as raw:
            stream = encode(request()) + store_message(SLICE) + encode(ReleaseRq())
            raw.send(stream[:at] + noise + stream[at + len(noise) :])
            while (await raw.receive())[0]:
                pass
        assert all(a.sha256 and len(a.data) <= len(SLICE.data) + 200 for a in shelf.arrivals)
        assert gate.memory.held == 0

    asyncio.run(play())
