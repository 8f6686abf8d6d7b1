"""DIMSE messages: command sets, and the gathering of fragments into messages (PS3.7 §6 and §9.3, PS3.8 Annex E).

Pure. A command set is Implicit VR Little Endian, group 0000. `Assembler` takes presentation data values as they come,
hashes data sets while they arrive and never holds more than one message. Bounds are beside what they bound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import sha256
from struct import pack, unpack_from

from consent.errors import Invalid
from node.imaging.part10 import valid_uid

from .pdu import AbortReason, Buffer, PduFault, Pdv, data_head

MAX_COMMAND_BYTES = 16 * 1024
MAX_COMMAND_ELEMENTS = 64
MAX_COMMENT_CHARACTERS = 64
MAX_AE_BYTES = 16
MAX_SENT_BYTES = 1024 * 1024
"""The longest P-DATA-TF sent to a peer that sets no limit."""
NO_DATA_SET = 0x0101

_COMMAND_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS_UID = 0x0002
_REQUESTED_SOP_CLASS_UID = 0x0003
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_RESPONDED = 0x0120
_MOVE_DESTINATION = 0x0600
_PRIORITY = 0x0700
_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000
_REQUESTED_SOP_INSTANCE_UID = 0x1001
_EVENT_TYPE_ID = 0x1002
_ACTION_TYPE_ID = 0x1008
_SUBOPERATIONS = (0x1020, 0x1021, 0x1022, 0x1023)
_MOVE_ORIGINATOR_AE = 0x1030
_MOVE_ORIGINATOR_ID = 0x1031


class Verb(IntEnum):
    """Command Field values that are spoken here (PS3.7 §E.1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_GET_RQ = 0x0010
    C_GET_RSP = 0x8010
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    N_EVENT_REPORT_RQ = 0x0100
    N_EVENT_REPORT_RSP = 0x8100
    N_ACTION_RQ = 0x0130
    N_ACTION_RSP = 0x8130
    C_CANCEL_RQ = 0x0FFF


RESPONSE = 0x8000
PENDING = 0xFF00
CANCELLED = 0xFE00
WITH_REMAINING = frozenset({PENDING, CANCELLED})
_WITH_PRIORITY = frozenset({Verb.C_STORE_RQ, Verb.C_FIND_RQ, Verb.C_GET_RQ, Verb.C_MOVE_RQ})
_WITH_TYPE: dict[int, int] = {Verb.N_ACTION_RQ: _ACTION_TYPE_ID, Verb.N_EVENT_REPORT_RQ: _EVENT_TYPE_ID}
_NAMING_REQUESTED = frozenset({Verb.N_ACTION_RQ})
"""Requests that name a SOP class and instance as requested, not as affected."""


@dataclass(frozen=True)
class Suboperations:
    """How many C-STORE sub-operations remain, succeeded, failed, and ended with a warning (PS3.7 §9.1.3, §9.1.4)."""

    remaining: int
    completed: int
    failed: int
    warning: int


@dataclass(frozen=True)
class Command:
    """A command set as it matters here; `status`, `comment` and `suboperations` are those of a response.

    `type_id` is the Action Type ID of an N-ACTION or the Event Type ID of an N-EVENT-REPORT. `originator` is who asked,
    and by which message, for the C-MOVE that a C-STORE carries out.
    """

    verb: int
    message_id: int
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    has_data: bool = False
    status: int = 0
    comment: str = ""
    destination: str = ""
    type_id: int = 0
    suboperations: Suboperations | None = None
    originator: tuple[str, int] | None = None

    def numbered(self, message_id: int) -> Command:
        """The same with another message ID."""
        return replace(self, message_id=message_id)


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class Message:
    """A command with its data set. `dropped` says why the data set was not kept, when it was not."""

    command: Command
    context: Context
    data: bytearray = field(default_factory=bytearray, repr=False)
    sha256: bytes = b""
    dropped: str = ""


def parse_command(data: Buffer) -> Command:
    """Read a command set. Raises Invalid when it is not one, or says the same thing twice."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if len(data) - position < 8 or len(found) >= MAX_COMMAND_ELEMENTS:
            raise _bad("it is cut short or too long")
        group, element, length = unpack_from("<HHI", data, position)
        position += 8
        if group != 0 or length > len(data) - position or element in found:
            raise _bad("an element is not a command's, too long, or there twice")
        found[element] = bytes(data[position : position + length])
        position += length
    verb = _word(found, _COMMAND_FIELD)
    requested = verb in _NAMING_REQUESTED
    # A cancel names the message that it ends as a response names the one that it answers (PS3.7 §9.3.2.3).
    responding = verb & RESPONSE or verb == Verb.C_CANCEL_RQ
    return Command(
        verb,
        _word(found, _MESSAGE_ID_RESPONDED if responding else _MESSAGE_ID),
        _uid(found, _REQUESTED_SOP_CLASS_UID if requested else _AFFECTED_SOP_CLASS_UID),
        _uid(found, _REQUESTED_SOP_INSTANCE_UID if requested else _AFFECTED_SOP_INSTANCE_UID),
        _word(found, _DATA_SET_TYPE) != NO_DATA_SET,
        _word(found, _STATUS) if verb & RESPONSE else 0,
        found.get(_ERROR_COMMENT, b"")[:MAX_COMMENT_CHARACTERS]
        .decode("ascii", errors="replace")
        .strip(" \0"),
        found.get(_MOVE_DESTINATION, b"")[:MAX_AE_BYTES].decode("ascii", errors="replace").strip(" \0"),
        _optional(found, _EVENT_TYPE_ID if verb & 0x7FFF == Verb.N_EVENT_REPORT_RQ else _ACTION_TYPE_ID),
        Suboperations(*(_optional(found, element) for element in _SUBOPERATIONS))
        if any(element in found for element in _SUBOPERATIONS)
        else None,
    )


def encode_request(command: Command) -> bytes:
    """The command set of a request."""
    elements = {
        _COMMAND_FIELD: pack("<H", command.verb),
        _DATA_SET_TYPE: pack("<H", 0 if command.has_data else NO_DATA_SET),
    }
    if command.verb == Verb.C_CANCEL_RQ:
        return _encode(elements | {_MESSAGE_ID_RESPONDED: pack("<H", command.message_id)})
    requested = command.verb in _NAMING_REQUESTED
    elements[_MESSAGE_ID] = pack("<H", command.message_id)
    sop_class = _REQUESTED_SOP_CLASS_UID if requested else _AFFECTED_SOP_CLASS_UID
    elements[sop_class] = _padded(command.sop_class_uid, b"\0")
    if command.sop_instance_uid:
        sop_instance = _REQUESTED_SOP_INSTANCE_UID if requested else _AFFECTED_SOP_INSTANCE_UID
        elements[sop_instance] = _padded(command.sop_instance_uid, b"\0")
    if command.verb in _WITH_PRIORITY:
        elements[_PRIORITY] = pack("<H", 0)
    if command.verb == Verb.C_MOVE_RQ:
        elements[_MOVE_DESTINATION] = _padded(command.destination, b" ")
    if command.verb in _WITH_TYPE:
        elements[_WITH_TYPE[command.verb]] = pack("<H", command.type_id)
    if command.originator is not None:
        ae_title, message_id = command.originator
        elements[_MOVE_ORIGINATOR_AE] = _padded(ae_title, b" ")
        elements[_MOVE_ORIGINATOR_ID] = pack("<H", message_id)
    return _encode(elements)


def encode_response(
    request: Command,
    status: int,
    comment: str = "",
    *,
    has_data: bool = False,
    suboperations: Suboperations | None = None,
) -> bytes:
    """The response's command set to `request`; `comment` is cut to what (0000,0902) holds.

    Of `suboperations`, those that remain are told only while some do, or when they were cancelled (PS3.4 §C.4.2.1.6).
    """
    elements = {
        _COMMAND_FIELD: pack("<H", request.verb | RESPONSE),
        _MESSAGE_ID_RESPONDED: pack("<H", request.message_id),
        _DATA_SET_TYPE: pack("<H", 0 if has_data else NO_DATA_SET),
        _STATUS: pack("<H", status),
    }
    if suboperations is not None:
        counts = (
            suboperations.remaining, suboperations.completed, suboperations.failed, suboperations.warning
        )  # fmt: skip
        elements |= {
            element: pack("<H", min(count, 0xFFFF))
            for element, count in zip(_SUBOPERATIONS, counts, strict=True)
            if element != _SUBOPERATIONS[0] or status in WITH_REMAINING
        }
    if request.verb in _WITH_TYPE:
        elements[_WITH_TYPE[request.verb]] = pack("<H", request.type_id)
    if request.sop_class_uid:
        elements[_AFFECTED_SOP_CLASS_UID] = _padded(request.sop_class_uid, b"\0")
    if request.sop_instance_uid:
        elements[_AFFECTED_SOP_INSTANCE_UID] = _padded(request.sop_instance_uid, b"\0")
    if comment:
        elements[_ERROR_COMMENT] = _padded(_comment(comment), b" ")
    return _encode(elements)


def framed(context_id: int, data: Buffer, *, command: bool, max_length: int) -> Iterator[Buffer]:
    """P-DATA-TF heads and slices of `data`, in order, none longer than the peer takes (0: no limit of its own).

    Pieces are of even length but for the last (PS3.8 Annex E).
    """
    piece = min(max_length or MAX_SENT_BYTES, MAX_SENT_BYTES) - 6 & ~1
    view = memoryview(data)
    for start in range(0, max(len(view), 1), piece):
        part = view[start : start + piece]
        last = start + piece >= len(view)
        yield data_head(context_id, len(part), command=command, last=last)
        yield part


async def at_once(data: bytes) -> AsyncIterator[bytes]:
    """A data set that is there already, for those who take one in pieces."""
    yield data


async def framed_pieces(
    context_id: int, pieces: AsyncIterator[bytes], size: int, max_length: int
) -> AsyncIterator[list[Buffer]]:
    """A data set of `size` bytes that comes in pieces of even length, framed piece by piece.

    Raises Invalid when the pieces are not that many bytes: then half a message is out, and the association is to be ended.
    """
    piece = min(max_length or MAX_SENT_BYTES, MAX_SENT_BYTES) - 6 & ~1
    sent = 0
    async for part in pieces:
        view = memoryview(part)
        parts: list[Buffer] = []
        for start in range(0, len(view), piece):
            fragment = view[start : start + piece]
            sent += len(fragment)
            parts += (data_head(context_id, len(fragment), command=False, last=sent >= size), fragment)
        yield parts
    if size == 0:  # the last fragment says that it is the last, also when there is nothing in it
        yield [data_head(context_id, 0, command=False, last=True)]
    if sent != size:
        raise Invalid("A data set is not as long as it was said to be.", code="bad-length")


class Assembler:
    """Gathers fragments into messages over the accepted contexts of one association.

    `max_data_bytes` bounds a data set: what is longer is read and dropped, and the message says so.
    """

    def __init__(self, contexts: Mapping[int, Context], max_data_bytes: int) -> None:
        self._contexts = contexts
        self._max_data_bytes = max_data_bytes
        self._fragments = bytearray()
        self._context: Context | None = None
        self._command: Command | None = None
        self._data = bytearray()
        self._digest = sha256()
        self._dropped = ""

    @property
    def dropping(self) -> bool:
        """Whether the data set that arrives is read past."""
        return bool(self._dropped)

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a message has come yet."""
        return self._command is None and not self._fragments

    def drop(self, why: str) -> None:
        """Give up the data set that is arriving; its rest is read past."""
        self._dropped = why
        self._data = bytearray()

    def take(self, pdv: Pdv, buffer: memoryview) -> Message | None:
        """Take one value out of `buffer`; return the message that it completes. Raises PduFault."""
        context = self._contexts.get(pdv.context_id)
        if context is None:
            raise PduFault(
                "a data value names a context that was not accepted", AbortReason.INVALID_PARAMETER
            )
        if self._context not in (None, context):
            raise PduFault("a message changes its presentation context")
        self._context = context
        fragment = buffer[pdv.start : pdv.end]
        if pdv.command:
            return self._take_command(fragment, pdv.last, context)
        return self._take_data(fragment, pdv.last, context)

    def _take_command(self, fragment: memoryview, last: bool, context: Context) -> Message | None:
        if self._command is not None:
            raise PduFault("a command comes where data should", AbortReason.UNEXPECTED_PARAMETER)
        if len(self._fragments) + len(fragment) > MAX_COMMAND_BYTES:
            raise PduFault("a command set is too long")
        self._fragments += fragment
        if not last:
            return None
        try:
            command = parse_command(self._fragments)
        except Invalid as error:
            raise PduFault("a command set is not one") from error
        self._fragments = bytearray()
        if command.has_data:
            self._command = command
            return None
        self._context = None
        return Message(command, context)

    def _take_data(self, fragment: memoryview, last: bool, context: Context) -> Message | None:
        command = self._command
        if command is None:
            raise PduFault("data comes before its command", AbortReason.UNEXPECTED_PARAMETER)
        if not self._dropped:
            if len(self._data) + len(fragment) > self._max_data_bytes:
                self.drop(f"The instance is larger than {self._max_data_bytes >> 20} MiB")
            else:
                self._data += fragment
                self._digest.update(fragment)
        if not last:
            return None
        message = Message(command, context, self._data, self._digest.digest(), self._dropped)
        self._command, self._context, self._dropped = None, None, ""
        self._data, self._digest = bytearray(), sha256()
        return message


def _encode(elements: Mapping[int, bytes]) -> bytes:
    body = b"".join(pack("<HHI", 0, tag, len(value)) + value for tag, value in sorted(elements.items()))
    return pack("<HHII", 0, _COMMAND_GROUP_LENGTH, 4, len(body)) + body


def _padded(text: str, pad: bytes) -> bytes:
    raw = text.encode("ascii", errors="replace")
    return raw + pad if len(raw) % 2 else raw


def _comment(text: str) -> str:
    """LO: 64 characters, no backslash or control characters (PS3.5 §6.2)."""
    plain = "".join(c if c.isascii() and c.isprintable() and c != "\\" else " " for c in text).strip()
    return plain if len(plain) <= MAX_COMMENT_CHARACTERS else plain[: MAX_COMMENT_CHARACTERS - 3] + "..."


def _word(found: Mapping[int, bytes], element: int) -> int:
    value = found.get(element)
    if value is None or len(value) != 2:
        raise _bad(f"element (0000,{element:04X}) is missing or not a number")
    return int.from_bytes(value, "little")


def _optional(found: Mapping[int, bytes], element: int) -> int:
    return _word(found, element) if element in found else 0


def _uid(found: Mapping[int, bytes], element: int) -> str:
    value = found.get(element)
    return valid_uid(value, f"Element (0000,{element:04X})") if value else ""


def _bad(why: str) -> Invalid:
    return Invalid(f"Not a DIMSE command set: {why}.", code="bad-command")
