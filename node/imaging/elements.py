"""Data elements of a DICOM data set, found in place by iteration (PS3.5 §7 and Annex A).

Holds transfer syntax encodings, the tokenizer and bounded inflation. Leaves values to `attributes` and
`dicom_json`. Nothing here recurses, copies a value or trusts a length: every declared length is checked
against the bytes that are there, nesting and element count are bounded, and a break of the format is Invalid.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from consent.errors import Invalid

from .dictionary import UIDS, dictionary_vr

Buffer = bytes | bytearray | memoryview

MAX_DEPTH = 32
MAX_ELEMENTS = 1_000_000
TOO_MANY_ELEMENTS = "too-many-elements"
MAX_INFLATED_HEADER = 16 * 1024 * 1024

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

_LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_SHORT = frozenset(
    {"AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST"}
    | {"TM", "UI", "UL", "US"}
)
# PS3.5 Table 7.1-1: these have two reserved bytes and a 32-bit length; the others a 16-bit length.
_VR = {name.encode(): (name, name in _LONG) for name in _LONG | _SHORT}
_FIRST_PIECE = 256 * 1024


class Form(NamedTuple):
    """How elements are written at one place: VR given or not, and the byte order of numbers."""

    explicit: bool
    order: str
    head: Struct
    u16: Struct
    u32: Struct


def _form(explicit: bool, order: str) -> Form:
    return Form(explicit, order, Struct(order + "HH2sH"), Struct(order + "H"), Struct(order + "I"))


EXPLICIT_LITTLE = _form(True, "<")
IMPLICIT_LITTLE = _form(False, "<")
EXPLICIT_BIG = _form(True, ">")


class Encoding(NamedTuple):
    """What a transfer syntax says about a data set (PS3.5 Annex A)."""

    form: Form
    deflated: bool = False
    encapsulated: bool = False


class Element(NamedTuple):
    """One element: `start` is its value's offset; `length` is UNDEFINED or the value's size in bytes.

    `vr` is "" where the encoding does not give one (Implicit VR).
    """

    tag: int
    vr: str
    start: int
    length: int


_ENCODINGS = {
    "1.2.840.10008.1.2": Encoding(IMPLICIT_LITTLE),
    "1.2.840.10008.1.2.1": Encoding(EXPLICIT_LITTLE),
    "1.2.840.10008.1.2.1.99": Encoding(EXPLICIT_LITTLE, deflated=True),
    "1.2.840.10008.1.2.2": Encoding(EXPLICIT_BIG),
}
# Not data set encodings, or ones whose pixels lie elsewhere: what cannot be kept whole is not taken.
_NOT_STORED = ("JPIP", "SMPTE", "RFC 2557", "XML", "Papyrus")

TRANSFER_SYNTAXES: frozenset[str] = frozenset(
    uid
    for uid, (name, kind, *_) in UIDS.items()
    if kind == "Transfer Syntax" and not name.startswith(_NOT_STORED)
)
"""Every transfer syntax that a node keeps, as sent."""


def encoding_of(transfer_syntax: str) -> Encoding:
    """Return the encoding; raises Invalid for a transfer syntax that is not kept here."""
    known = _ENCODINGS.get(transfer_syntax)
    if known is not None:
        return known
    if transfer_syntax in TRANSFER_SYNTAXES:
        return Encoding(EXPLICIT_LITTLE, encapsulated=True)
    raise Invalid(
        "This transfer syntax is not one that a node keeps.",
        mend="Send in a transfer syntax of the conformance statement.",
        code="transfer-syntax",
    )


def elements(
    data: Buffer, form: Form, start: int = 0, end: int | None = None, *, most: int = MAX_ELEMENTS
) -> Iterator[Element]:
    """Yield the elements of one level, in order, without entering sequences; `most` counts those passed over too.

    An element's declared length is checked when the next one is asked for, so a caller may stop at Pixel Data
    of a data set whose rest has not been read. Raises Invalid where the format is broken.
    """
    size = len(data) if end is None else end
    position = start
    left = most
    while position < size:
        element = header(data, position, size, form)
        if element.tag >> 16 == 0xFFFE:
            raise _broken("a delimiter stands outside a sequence", position)
        yield element
        left -= 1
        if element.length == UNDEFINED:
            position, left = past_sequence(data, element, size, form, left)
        else:
            position = _past(element.start, element.length, size)
        if left <= 0:
            raise _too_many()


def header(data: Buffer, position: int, size: int, form: Form) -> Element:
    """Read the tag, VR and length at `position`; does not check that the value is there."""
    if size - position < 8:
        raise _short(position)
    group, number, code, length = form.head.unpack_from(data, position)
    tag = group << 16 | number
    if not form.explicit or group == 0xFFFE:
        return Element(tag, "", position + 8, form.u32.unpack_from(data, position + 4)[0])
    known = _VR.get(code)
    if known is None:
        raise _broken("a value representation is not one of the standard's", position)
    vr, long = known
    if not long:
        return Element(tag, vr, position + 8, length)
    if size - position < 12:
        raise _short(position)
    return Element(tag, vr, position + 12, form.u32.unpack_from(data, position + 8)[0])


def header_bytes(element: Element, form: Form) -> int:
    """How many bytes stand before the value of an element that `header` read."""
    return 12 if form.explicit and element.vr in _LONG else 8


def past_sequence(data: Buffer, opening: Element, size: int, form: Form, left: int) -> tuple[int, int]:
    """Return (offset after the sequence of undefined length that `opening` began, elements still allowed).

    Also passes over encapsulated Pixel Data, which is built the same way (PS3.5 §A.4).
    """
    position = opening.start
    forms = [form_within(opening, form)]  # one entry for each open sequence
    in_item = False
    while forms:
        left -= 1
        if left <= 0:
            raise _too_many()
        element = header(data, position, size, forms[-1])
        if in_item:
            if element.tag == ITEM_END:
                position, in_item = element.start, False
            elif element.tag >> 16 == 0xFFFE:
                raise _broken("a delimiter stands where an element should", position)
            elif element.length == UNDEFINED:
                forms.append(form_within(element, forms[-1]))
                check_depth(len(forms))
                position, in_item = element.start, False
            else:
                position = _past(element.start, element.length, size)
        elif element.tag == ITEM:
            in_item = element.length == UNDEFINED
            position = element.start if in_item else _past(element.start, element.length, size)
        elif element.tag == SEQUENCE_END:
            forms.pop()
            position, in_item = element.start, True
        else:
            raise _broken("a sequence holds something that is not an item", position)
    return position, left


def items(
    data: Buffer, sequence: Element, form: Form, *, limit: int, most: int = MAX_ELEMENTS
) -> Iterator[list[Element]]:
    """The elements of each item of a sequence that `elements` yielded; nothing is entered deeper.

    At most `limit` items, each of at most `most` elements. Raises Invalid where the format is broken.
    """
    inner = form_within(sequence, form)
    endless = sequence.length == UNDEFINED
    end = len(data) if endless else _past(sequence.start, sequence.length, len(data))
    position = sequence.start
    for _ in range(limit):
        if position >= end:
            return
        item = header(data, position, end, inner)
        if item.tag == SEQUENCE_END and endless:
            return
        if item.tag != ITEM:
            raise _broken("a sequence holds something that is not an item", position)
        if item.length == UNDEFINED:
            found, position = _endless_item(data, item.start, end, inner, most)
        else:
            position = _past(item.start, item.length, end)
            found = list(elements(data, inner, item.start, position, most=most))
        yield found


def _endless_item(data: Buffer, start: int, end: int, form: Form, most: int) -> tuple[list[Element], int]:
    """The elements of an item of undefined length, and the offset behind its delimiter."""
    found: list[Element] = []
    position, left = start, most
    while left > 0:
        element = header(data, position, end, form)
        if element.tag == ITEM_END:
            return found, element.start
        found.append(element)
        left -= 1
        if element.length == UNDEFINED:
            position, left = past_sequence(data, element, end, form, left)
        else:
            position = _past(element.start, element.length, end)
    raise _too_many()


def form_within(sequence: Element, form: Form) -> Form:
    """The form of a sequence's items: UN of undefined length holds Implicit VR Little Endian (PS3.5 §6.2.2)."""
    return IMPLICIT_LITTLE if sequence.vr == "UN" else form


def check_depth(depth: int) -> None:
    """Raise Invalid when sequences nest deeper than MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise Invalid(f"Sequences are nested more than {MAX_DEPTH} deep.", code="too-deep")


def inflate_header(data: Buffer) -> bytes:
    """Inflate a deflated data set (PS3.5 §A.5) as far as Pixel Data, or to its end.

    Raises Invalid when it is not deflate data, or when Pixel Data does not come within MAX_INFLATED_HEADER.
    """
    limit = _FIRST_PIECE
    while True:
        found, finished = inflate(data, limit)
        if finished or _reaches_pixels(found):
            return found
        if limit >= MAX_INFLATED_HEADER:
            raise Invalid(
                f"The deflated header is longer than {MAX_INFLATED_HEADER} bytes.", code="inflates-too-far"
            )
        limit = min(limit * 8, MAX_INFLATED_HEADER)


def inflate(data: Buffer, max_bytes: int) -> tuple[bytes, bool]:
    """Inflate at most `max_bytes`; return what came and whether it was all. Raises Invalid on bad input."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(data, max_bytes)
    except zlib.error as error:
        raise Invalid("The deflated data set cannot be inflated.", code="bad-deflate") from error
    # A pad byte may follow the stream (PS3.5 §A.5); a stream that just stops is found by the parser.
    return found, inflater.eof or not inflater.unconsumed_tail


@lru_cache(maxsize=16384)
def vr_of(tag: int) -> str:
    """The dictionary's VR ("US or SS" where it depends), UN for a tag that the dictionary lacks."""
    if tag & 0xFFFF == 0:
        return "UL"
    if tag >> 16 & 1:
        # PS3.5 §7.8.1: (gggg,0010-00FF) in an odd group are private creators.
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    try:
        return dictionary_vr(tag)
    except KeyError:
        return "UN"


def _reaches_pixels(data: bytes) -> bool:
    try:
        return any(element.tag in PIXEL_DATA for element in elements(data, EXPLICIT_LITTLE))
    except Invalid as error:
        if error.code == "truncated":
            return False
        raise


def _past(start: int, length: int, size: int) -> int:
    if length > size - start:
        raise _short(start)
    return start + length


def _too_many() -> Invalid:
    return Invalid(f"The data set has more than {MAX_ELEMENTS} elements.", code=TOO_MANY_ELEMENTS)


def _short(position: int) -> Invalid:
    return Invalid(
        f"The data set ends inside the element at byte {position}.",
        mend="Send it again; it was cut short, or a length in it is wrong.",
        code="truncated",
    )


def _broken(what: str, position: int) -> Invalid:
    return Invalid(f"Not a DICOM data set: {what} (byte {position}).", code="bad-data-set")
