"""C-ECHO and C-STORE: what is answered, by error family, and what is written down."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import (
    AccordError,
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    Unavailable,
)
from consent.principals import Principal
from consent.vocabulary import EventKind, Role
from node.dicom.messages import (
    MAX_COMMENT_CHARACTERS,
    Command,
    Context,
    Message,
    Verb,
    encode_request,
    encode_response,
    framed_pieces,
    parse_command,
)
from node.dicom.negotiation import VERIFICATION
from node.dicom.pdu import pdvs
from node.dicom.services import Services, status_of
from node.ingest import Source
from tests.node.dicom.conftest import Journal, Shelf, still_channel
from tests.support.dicom import ct_slice

SLICE = ct_slice()
STORAGE = Context(1, SLICE.sop_class_uid, SLICE.transfer_syntax_uid)
ECHO = Context(3, VERIFICATION, "1.2.840.10008.1.2")
SOURCE = Source(Principal("CT1", Role.DEVICE, "CT1", "a-general"), "dimse", "10.0.0.5")


def _store(**more: object) -> Message:
    command = Command(Verb.C_STORE_RQ, 1, SLICE.sop_class_uid, SLICE.sop_instance_uid, True)
    fields = {
        "command": command,
        "context": STORAGE,
        "data": bytearray(SLICE.data),
        "sha256": SLICE.sha256,
        **more,
    }
    return Message(**fields)  # type: ignore[arg-type]


async def _answer(message: Message, error: Exception | None = None) -> tuple[Command, Shelf, Journal]:
    shelf, journal = Shelf(error=error), Journal()
    response, status = await Services(shelf, journal).serve(message, SOURCE, still_channel())
    command = parse_command(response)
    assert command.status == status
    return command, shelf, journal


async def test_echo() -> None:
    """C-ECHO answers 0000 on a verification context."""
    answer, _, _ = await _answer(Message(Command(Verb.C_ECHO_RQ, 5, VERIFICATION), ECHO))
    assert (answer.verb, answer.message_id, answer.status) == (Verb.C_ECHO_RSP, 5, 0)


async def test_store_repeats_what_was_stored() -> None:
    """The response names the instance."""
    answer, shelf, journal = await _answer(_store())
    assert (answer.status, answer.comment) == (0, "")
    assert answer.sop_instance_uid == SLICE.sop_instance_uid
    assert len(shelf.arrivals) == 1 and not journal.events


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Denied("The device may not."), 0x0124),
        (Invalid("Not a data set."), 0xC000),
        (Invalid("UIDs differ.", code="uid-mismatch"), 0xA900),
        (Conflict("Another instance has this UID."), 0x0111),
        (Unavailable("The disk is full."), 0xA700),
        (Corrupt("The digest does not match."), 0xC001),
        (NotFound("No such thing."), 0x0112),
        (AccordError("Something else."), 0x0110),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, AccordError) else "",
)
async def test_every_family_has_its_status_and_says_why(error: AccordError, status: int) -> None:
    """The sender is told which kind of error it was, and the words."""
    answer, shelf, _ = await _answer(_store(), error)
    assert answer.status == status == status_of(error)
    assert answer.comment == error.message
    assert not shelf.arrivals


async def test_unforeseen_error_is_a_failure_and_tells_nothing() -> None:
    """A bug answers 0110; its text stays inside."""
    answer, _, _ = await _answer(_store(), RuntimeError("secret of the house"))
    assert answer.status == 0x0110
    assert "secret" not in answer.comment


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (_store(dropped="The instance is larger than 1 MiB."), 0xA700),
        (_store(command=Command(Verb.C_STORE_RQ, 1, SLICE.sop_class_uid, SLICE.sop_instance_uid)), 0xC000),
        (_store(context=Context(1, "1.2.840.10008.5.1.4.1.1.4", SLICE.transfer_syntax_uid)), 0x0122),
        (_store(context=ECHO), 0x0122),
        (Message(Command(Verb.C_ECHO_RQ, 1, VERIFICATION), STORAGE), 0x0122),
        (Message(Command(0x0020, 1, SLICE.sop_class_uid), STORAGE), 0x0211),
    ],
    ids=["too large", "no data", "other class", "store on echo", "echo on store", "find"],
)
async def test_what_is_no_service_here_is_refused(message: Message, status: int) -> None:
    """Each misuse has the standard's status, and nothing reaches ingest."""
    answer, shelf, _ = await _answer(message)
    assert answer.status == status and answer.comment
    assert not shelf.arrivals


async def test_refusals_of_this_door_are_in_the_log() -> None:
    """Ingest logs its own refusals; what never reaches it is logged here."""
    _, _, journal = await _answer(_store(dropped="The instance is larger than 1 MiB."))
    (event,) = journal.events
    assert (event.kind, event.actor, event.detail["code"]) == (
        EventKind.INSTANCE_REFUSED,
        "device:CT1",
        "too-large",
    )


@pytest.mark.parametrize("verb", [Verb.C_CANCEL_RQ, Verb.C_STORE_RSP])
async def test_cancels_and_stray_responses_are_not_answered(verb: Verb) -> None:
    """Nothing here can be cancelled, and nobody here awaits a response."""
    response, _ = await Services(Shelf(), Journal()).serve(
        Message(Command(verb, 1), STORAGE), SOURCE, still_channel()
    )
    assert response == b""


def test_comments_fit_their_element() -> None:
    """(0000,0902) is LO: at most 64 characters, one line, no backslash, ASCII."""
    request = Command(Verb.C_STORE_RQ, 1, SLICE.sop_class_uid, SLICE.sop_instance_uid, True)
    comment = parse_command(encode_response(request, 0xC000, "Zu\\viel\n" + "ü" + "x" * 200)).comment
    assert len(comment) == MAX_COMMENT_CHARACTERS
    assert comment.startswith("Zu viel") and "\\" not in comment


def test_requests_read_back() -> None:
    """Command sets round-trip."""
    request = Command(Verb.C_STORE_RQ, 65535, SLICE.sop_class_uid, SLICE.sop_instance_uid, True)
    assert parse_command(encode_request(request)) == request


GOOD = encode_request(Command(Verb.C_ECHO_RQ, 1, VERIFICATION))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        GOOD[:-1],
        GOOD + GOOD,
        GOOD + struct.pack("<HHI", 8, 0x18, 0),
        GOOD + struct.pack("<HHI", 0, 0x5000, 0xFFFFFFFF),
        GOOD + b"".join(struct.pack("<HHI", 0, 0x6000 + n, 0) for n in range(100)),
        struct.pack("<HHI", 0, 0x0100, 1) + b"\x01",
        GOOD.replace(b"1.2.840", b"1.2/840"),
    ],
)
def test_malformed_command_sets_are_invalid(data: bytes) -> None:
    """Cut, doubled, of another group, without end, or with UIDs that are none."""
    with pytest.raises(Invalid):
        parse_command(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 100))
def test_noise_is_invalid_or_a_command(noise: bytes, at: int) -> None:
    """No bytes do more."""
    for data in (noise, GOOD[:at] + noise + GOOD[at + len(noise) :]):
        try:
            parse_command(data)
        except Invalid:
            pass


async def _in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("sizes", [(10,), (700, 700, 3), (64, 64)])
async def test_a_data_set_in_pieces_is_one_message(sizes: tuple[int, ...]) -> None:
    """Fragments in order, none longer than the peer takes, the last one and no other marked as last."""
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    whole = b"".join(pieces)
    out = [part async for part in framed_pieces(5, _in_pieces(*pieces), len(whole), 128)]
    stream = b"".join(bytes(part) for parts in out for part in parts)
    taken, position = b"", 0
    while position < len(stream):
        end = position + 6 + int.from_bytes(stream[position + 2 : position + 6], "big")
        assert end - position - 6 <= 128
        (value,) = pdvs(stream, position + 6, end)
        taken += stream[value.start : value.end]
        assert value.last == (end == len(stream)) and not value.command
        position = end
    assert taken == whole


@pytest.mark.parametrize("size", [9, 11])
async def test_a_data_set_of_another_length_is_not_finished_quietly(size: int) -> None:
    """Whoever sends it hears that half a message is out."""
    with pytest.raises(Invalid) as refusal:
        async for _ in framed_pieces(1, _in_pieces(bytes(10)), size, 0):
            pass
    assert refusal.value.code == "bad-length"
