"""The PDUs of the DICOM upper layer (PS3.8 §9.3): bytes to frozen records and back, within bounds.

Pure: no socket, no state. P-DATA-TF is not turned into records; `pdvs` walks it in place. Every length is
checked against what holds it, and a break of the format is a `PduFault`, which says what to put in the A-ABORT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import pack
from typing import NamedTuple

from consent.errors import Invalid
from node.imaging.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, valid_uid

HEAD_BYTES = 6
MAX_DATA_BYTES = 131_072
"""The longest P-DATA-TF variable field that we announce and take."""
MAX_ASSOCIATE_BYTES = 256 * 1024
MAX_CONTEXTS = 128
MAX_TRANSFER_SYNTAXES = 64
MAX_USER_ITEMS = 512
MAX_PDVS = 256
MIN_DATA_BYTES = 64
"""The shortest P-DATA-TF that a peer may ask for; less would be heads without data."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
PROTOCOL_VERSION = 1

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """PDU types (PS3.8 §9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(IntEnum):
    """Reasons of a service-provider abort (PS3.8 §9.3.8)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class PduFault(Invalid):
    """A PDU that is not one; `reason` goes into the A-ABORT."""

    code = "bad-pdu"

    def __init__(self, message: str, reason: AbortReason = AbortReason.INVALID_PARAMETER) -> None:
        super().__init__(f"Malformed DICOM PDU: {message}.")
        self.reason = reason


class Proposal(NamedTuple):
    """A presentation context as proposed."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


class Result(IntEnum):
    """What became of a presentation context (PS3.8 §9.3.3.2)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX = 3
    TRANSFER_SYNTAXES = 4


class Answer(NamedTuple):
    """The answer to one proposal; `transfer_syntax` counts only when accepted."""

    id: int
    result: int
    transfer_syntax: str


class Roles(NamedTuple):
    """SCP/SCU role selection of one SOP class (PS3.7 §D.3.3.4): which roles the association requestor may play."""

    sop_class: str
    scu: bool
    scp: bool


class Extended(NamedTuple):
    """SOP class extended negotiation (PS3.7 §D.3.3.5): `fields` mean what the SOP class says they do."""

    sop_class: str
    fields: bytes


class Window(NamedTuple):
    """Asynchronous operations window (PS3.7 §D.3.3.3); 0 means without limit."""

    invoked: int
    performed: int


@dataclass(frozen=True)
class AssociateRq:
    """A-ASSOCIATE-RQ. `max_length` 0 means no limit."""

    called: str
    calling: str
    contexts: tuple[Proposal, ...]
    max_length: int = MAX_DATA_BYTES
    implementation: str = IMPLEMENTATION_CLASS_UID
    version_name: str = IMPLEMENTATION_VERSION_NAME
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = PROTOCOL_VERSION
    roles: tuple[Roles, ...] = ()
    extended: tuple[Extended, ...] = ()
    window: Window | None = None


@dataclass(frozen=True)
class AssociateAc:
    """A-ASSOCIATE-AC. The AE titles echo the request's."""

    called: str
    calling: str
    answers: tuple[Answer, ...]
    max_length: int = MAX_DATA_BYTES
    implementation: str = IMPLEMENTATION_CLASS_UID
    version_name: str = IMPLEMENTATION_VERSION_NAME
    roles: tuple[Roles, ...] = ()
    extended: tuple[Extended, ...] = ()
    window: Window | None = None


@dataclass(frozen=True)
class AssociateRj:
    """A-ASSOCIATE-RJ with the result, source and reason of PS3.8 Table 9-21."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True)
class ReleaseRq:
    """A-RELEASE-RQ."""


@dataclass(frozen=True)
class ReleaseRp:
    """A-RELEASE-RP."""


@dataclass(frozen=True)
class Abort:
    """A-ABORT: source 0 is the service user, 2 the service provider."""

    source: int = 0
    reason: int = 0


Pdu = AssociateRq | AssociateAc | AssociateRj | ReleaseRq | ReleaseRp | Abort


class Pdv(NamedTuple):
    """One presentation data value inside a P-DATA-TF: `start` to `end` are its bytes in the buffer."""

    context_id: int
    command: bool
    last: bool
    start: int
    end: int


def check_head(kind: int, length: int) -> None:
    """Judge the six bytes of a head before waiting for the rest. Raises PduFault."""
    if kind == Kind.DATA:
        limit = MAX_DATA_BYTES
    elif kind in (Kind.ASSOCIATE_RQ, Kind.ASSOCIATE_AC):
        limit = MAX_ASSOCIATE_BYTES
    elif kind in (Kind.ASSOCIATE_RJ, Kind.RELEASE_RQ, Kind.RELEASE_RP, Kind.ABORT):
        limit = 4
    else:
        raise PduFault(f"type {kind:02X} is not known", AbortReason.UNRECOGNIZED_PDU)
    if length > limit or (limit == 4 and length != 4):
        raise PduFault(f"a length of {length} bytes where at most {limit} are taken")


def decode(kind: int, body: bytes) -> Pdu:
    """Decode any PDU but P-DATA-TF from the bytes after its head. Raises PduFault."""
    if kind in (Kind.ASSOCIATE_RQ, Kind.ASSOCIATE_AC):
        return _associate(kind, body)
    if len(body) != 4:
        raise PduFault("a fixed-size PDU has another size")
    if kind == Kind.ASSOCIATE_RJ:
        return AssociateRj(body[1], body[2], body[3])
    if kind == Kind.RELEASE_RQ:
        return ReleaseRq()
    if kind == Kind.RELEASE_RP:
        return ReleaseRp()
    if kind == Kind.ABORT:
        return Abort(body[2], body[3])
    raise PduFault(f"type {kind:02X} is not known", AbortReason.UNRECOGNIZED_PDU)


def pdvs(data: Buffer, start: int, end: int) -> Iterator[Pdv]:
    """Walk the presentation data values of a P-DATA-TF that lies in `data` (PS3.8 §9.3.5). Raises PduFault."""
    position, count = start, 0
    while position < end:
        count += 1
        if end - position < 6 or count > MAX_PDVS:
            raise PduFault("a presentation data value is cut short, or there are too many")
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 2 or length > end - position - 4:
            raise PduFault("a presentation data value is longer than its PDU")
        control = data[position + 5]
        yield Pdv(
            data[position + 4], bool(control & 1), bool(control & 2), position + 6, position + 4 + length
        )
        position += 4 + length
    if not count:
        raise PduFault("a P-DATA-TF without a presentation data value")


def encode(pdu: Pdu) -> bytes:
    """The bytes of a PDU, head and all."""
    match pdu:
        case AssociateRq():
            return _encode_rq(pdu)
        case AssociateAc():
            return _encode_ac(pdu)
        case AssociateRj():
            return _framed(Kind.ASSOCIATE_RJ, bytes((0, pdu.result, pdu.source, pdu.reason)))
        case ReleaseRq():
            return _framed(Kind.RELEASE_RQ, bytes(4))
        case ReleaseRp():
            return _framed(Kind.RELEASE_RP, bytes(4))
        case Abort():
            return _framed(Kind.ABORT, bytes((0, 0, pdu.source, pdu.reason)))


def data_head(context_id: int, size: int, *, command: bool, last: bool) -> bytes:
    """The twelve bytes before `size` bytes of data that make a P-DATA-TF with one value."""
    return pack(">BBIIBB", Kind.DATA, 0, size + 6, size + 2, context_id, command | last << 1)


def _associate(kind: int, body: bytes) -> AssociateRq | AssociateAc:
    if len(body) < 68:
        raise PduFault("an association PDU without its fixed part")
    version = int.from_bytes(body[0:2], "big")
    called, calling = _ae_title(body[4:20]), _ae_title(body[20:36])
    application = ""
    contexts: list[bytes] = []
    user: dict[int, bytes] = {}
    roles: list[Roles] = []
    extended: list[Extended] = []
    for item, value in _items(body[68:], MAX_CONTEXTS + 2):
        if item == 0x10:
            application = _uid(value)
        elif item == (0x20 if kind == Kind.ASSOCIATE_RQ else 0x21):
            contexts.append(value)
        elif item == 0x50:
            for kind_of_item, content in _items(value, MAX_USER_ITEMS):
                if kind_of_item == 0x54:
                    roles.append(_roles(content))
                elif kind_of_item == 0x56:
                    extended.append(_extended(content))
                else:
                    user[kind_of_item] = content
    if len(contexts) > MAX_CONTEXTS:
        raise PduFault(f"more than {MAX_CONTEXTS} presentation contexts")
    length = int.from_bytes(user.get(0x51, bytes(4)), "big")
    if 0 < length < MIN_DATA_BYTES:
        raise PduFault(f"a maximum length of less than {MIN_DATA_BYTES} bytes")
    implementation = user.get(0x52, b"")[:64].decode("ascii", errors="replace").rstrip("\0 ")
    version_name = user.get(0x55, b"")[:16].decode("ascii", errors="replace").rstrip("\0 ")
    said = (tuple(roles), tuple(extended), _window(user.get(0x53)))
    if kind == Kind.ASSOCIATE_AC:
        answers = tuple(map(_answer, contexts))
        return AssociateAc(called, calling, answers, length, implementation, version_name, *said)
    proposals = tuple(map(_proposal, contexts))
    if len({proposal.id for proposal in proposals}) != len(proposals):
        raise PduFault("two presentation contexts have one ID")
    return AssociateRq(
        called, calling, proposals, length, implementation, version_name, application, version, *said
    )


def _window(value: bytes | None) -> Window | None:
    if value is None:
        return None
    if len(value) != 4:
        raise PduFault("an asynchronous operations window of another size")
    return Window(int.from_bytes(value[:2], "big"), int.from_bytes(value[2:], "big"))


def _roles(value: bytes) -> Roles:
    uid, rest = _counted_uid(value)
    if len(rest) != 2:
        raise PduFault("a role selection of another size")
    return Roles(uid, rest[0] == 1, rest[1] == 1)


def _extended(value: bytes) -> Extended:
    return Extended(*_counted_uid(value))


def _counted_uid(value: bytes) -> tuple[str, bytes]:
    """A UID behind its 16-bit length, and what follows it."""
    size = int.from_bytes(value[:2], "big")
    if len(value) < 2 or size > len(value) - 2:
        raise PduFault("a SOP class UID is longer than its item")
    return _uid(value[2 : 2 + size]), value[2 + size :]


def _proposal(value: bytes) -> Proposal:
    context_id = _context_id(value)
    abstract: list[str] = []
    syntaxes: list[str] = []
    for item, content in _items(value[4:], MAX_TRANSFER_SYNTAXES + 1):
        if item == 0x30:
            abstract.append(_uid(content))
        elif item == 0x40:
            syntaxes.append(_uid(content))
    if len(abstract) != 1 or not syntaxes:
        raise PduFault("a presentation context without one abstract syntax and a transfer syntax")
    return Proposal(context_id, abstract[0], tuple(syntaxes))


def _answer(value: bytes) -> Answer:
    context_id = _context_id(value)
    syntax = ""
    for item, content in _items(value[4:], 2):
        # PS3.8 §9.3.3.2: not significant unless accepted, so it need not be a UID then.
        if item == 0x40 and value[2] == Result.ACCEPTANCE:
            syntax = _uid(content)
    return Answer(context_id, value[2], syntax)


def _context_id(value: bytes) -> int:
    if len(value) < 4 or value[0] % 2 == 0:
        raise PduFault("a presentation context ID that is not odd")
    return value[0]


def _items(data: bytes, limit: int) -> Iterator[tuple[int, bytes]]:
    """Items and sub-items: type, reserved, 16-bit length, value."""
    position, count = 0, 0
    while position < len(data):
        if len(data) - position < 4:
            raise PduFault("an item is cut short")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        count += 1
        if length > len(data) - position - 4 or count > limit:
            raise PduFault("an item is longer than what holds it, or there are too many")
        yield data[position], data[position + 4 : position + 4 + length]
        position += 4 + length


def _uid(value: bytes) -> str:
    try:
        return valid_uid(value, "A UID")
    except Invalid as error:
        raise PduFault("a UID is not one") from error


def _ae_title(value: bytes) -> str:
    # Leading and trailing spaces are not significant (PS3.8 §9.3.2); some peers pad with NUL.
    title = value.decode("ascii", errors="replace").strip(" \0")
    return "".join(character if character.isprintable() else "?" for character in title)


def _encode_rq(pdu: AssociateRq) -> bytes:
    contexts = b"".join(
        _item(
            0x20,
            bytes((c.id, 0, 0, 0))
            + _item(0x30, c.abstract_syntax.encode())
            + b"".join(_item(0x40, syntax.encode()) for syntax in c.transfer_syntaxes),
        )
        for c in pdu.contexts
    )
    head = _titles(pdu.protocol_version, pdu.called, pdu.calling) + _item(
        0x10, pdu.application_context.encode()
    )
    return _framed(Kind.ASSOCIATE_RQ, head + contexts + _user(pdu))


def _encode_ac(pdu: AssociateAc) -> bytes:
    answers = b"".join(
        _item(0x21, bytes((a.id, 0, a.result, 0)) + _item(0x40, a.transfer_syntax.encode()))
        for a in pdu.answers
    )
    head = _titles(PROTOCOL_VERSION, pdu.called, pdu.calling) + _item(0x10, APPLICATION_CONTEXT.encode())
    return _framed(Kind.ASSOCIATE_AC, head + answers + _user(pdu))


def _titles(version: int, called: str, calling: str) -> bytes:
    pad = b"".join(title.encode("ascii", errors="replace")[:16].ljust(16) for title in (called, calling))
    return pack(">HH", version, 0) + pad + bytes(32)


def _user(pdu: AssociateRq | AssociateAc) -> bytes:
    """User information, its sub-items in the order of their types."""
    items = [_item(0x51, pack(">I", pdu.max_length)), _item(0x52, pdu.implementation.encode())]
    if pdu.window is not None:
        items.append(_item(0x53, pack(">HH", *pdu.window)))
    items += (_item(0x54, _uid_first(one.sop_class, bytes((one.scu, one.scp)))) for one in pdu.roles)
    items.append(_item(0x55, pdu.version_name.encode()))
    items += (_item(0x56, _uid_first(one.sop_class, one.fields)) for one in pdu.extended)
    return _item(0x50, b"".join(items))


def _uid_first(uid: str, rest: bytes) -> bytes:
    return pack(">H", len(uid)) + uid.encode() + rest


def _item(kind: int, value: bytes) -> bytes:
    return pack(">BBH", kind, 0, len(value)) + value


def _framed(kind: int, body: bytes) -> bytes:
    return pack(">BBI", kind, 0, len(body)) + body
