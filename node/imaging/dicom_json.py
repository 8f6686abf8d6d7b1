"""The DICOM JSON model of a data set (PS3.18 Annex F), without its bulk data.

Made once, after an instance has been answered for. A value that cannot be read is left out or null; it never
makes an accepted instance fail. Bulk (binary values, long texts and number lists, pixels) becomes a
`BulkDataURI` relative to the instance: `bulkdata/TAG` or `bulkdata/TAG/ITEM/TAG`, items counted from 0.
Elements after Pixel Data are left out.
Sequences are read by iteration, so nesting costs no stack.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import iter_unpack
from typing import Any

from consent.errors import Invalid

from .charsets import Charset, charset_of
from .elements import (
    IMPLICIT_LITTLE,
    ITEM,
    ITEM_END,
    PIXEL_DATA,
    SEQUENCE_END,
    UNDEFINED,
    Buffer,
    Element,
    Form,
    check_depth,
    elements,
    encoding_of,
    header,
    inflate_header,
    past_sequence,
    vr_of,
)

Model = dict[str, Any]

MAX_INLINE_BYTES = 1024
MAX_LIST_BYTES = 16 * 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_MODEL_ELEMENTS = 250_000
MAX_MODEL_BYTES = 16 * 1024 * 1024

CHARSET = 0x00080005
PIXEL_REPRESENTATION = 0x00280103
"""These two say how elements after them are read."""
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
# PS3.18 §F.2.2 allows a BulkDataURI for these besides the binary ones.
_MAY_BE_BULK = frozenset({"DS", "FD", "FL", "IS", "LT", "SL", "SS", "ST", "SV", "UC", "UL", "US", "UT", "UV"})
_ONE_TEXT = frozenset({"LT", "ST", "UR", "UT"})
_NUMBERS = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}
_SIZES = {"d": 8, "f": 4, "i": 4, "h": 2, "q": 8, "I": 4, "H": 2, "Q": 8}
_BY_CHARSET = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def json_model(data: Buffer, transfer_syntax: str) -> Model:
    """Return the model of a data set, up to and including Pixel Data.

    Raises Invalid only where `read_attributes` would. An element that is broken inside, nested too deep, or that
    would take the model past its bounds is left out.
    """
    encoding = encoding_of(transfer_syntax)
    source: Buffer = inflate_header(data) if encoding.deflated else data
    size = len(source)
    reader = _Reader(source)
    model: Model = {}
    top = _top(model, size, encoding.form, charset_of(b""))
    for element in elements(source, encoding.form):
        if element.tag in PIXEL_DATA:
            model[_name(element.tag)] = {"vr": _vr(top, element), "BulkDataURI": _uri(top, element)}
            break
        try:
            reader.add(top, element)
        except Invalid:
            model.pop(_name(element.tag), None)
    return model


def element_model(data: Buffer, element: Element, form: Form, charset: Charset, *, signed: bool) -> Model:
    """What one top-level element adds to the model of its data set: one entry, or none where it is left out.

    `charset` and `signed` (Pixel Representation) are those that hold where it stands.
    """
    model: Model = {}
    try:
        _Reader(data).add(_top(model, len(data), form, charset, signed=signed), element)
    except Invalid:
        return {}
    return model


def bulk_uris(model: Any) -> Iterator[str]:
    """Every BulkDataURI of a model, in order."""
    waiting = [model]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and isinstance(one.get("BulkDataURI"), str):
            yield one["BulkDataURI"]
        elif isinstance(one, dict | list):
            waiting.extend(reversed(list(one.values() if isinstance(one, dict) else one)))


@dataclass(slots=True)
class _Level:
    """An open data set (`target` is its model) or an open sequence (`target` is its list of items).

    `charset` and `signed` hold for it and what is in it, never for what it is in.
    """

    target: Any
    end: int | None
    limit: int
    form: Form
    charset: Charset
    signed: bool
    path: str
    owner: Model | None


class _Reader:
    """Turns elements into model entries, spending one budget over the whole data set."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._elements_left = MAX_MODEL_ELEMENTS
        self._bytes_left = MAX_MODEL_BYTES

    def add(self, level: _Level, element: Element) -> None:
        """Put one top-level element, with all that is inside it, into `level`."""
        if _vr(level, element) == "SQ":
            self._sequence(self._open(level, element), element.start)
        elif element.length == UNDEFINED or element.length > level.limit - element.start:
            raise Invalid("An element's length is wrong.", code="truncated")
        else:
            self._put(level, element)

    def _open(self, level: _Level, element: Element) -> _Level:
        end = None if element.length == UNDEFINED else element.start + element.length
        if end is not None and end > level.limit:
            raise Invalid("A sequence is longer than what holds it.", code="truncated")
        form = IMPLICIT_LITTLE if element.vr == "UN" else level.form
        entry: Model = {"vr": "SQ", "Value": []}
        level.target[_name(element.tag)] = entry
        return _Level(
            entry["Value"],
            end,
            level.limit if end is None else end,
            form,
            level.charset,
            level.signed,
            _uri(level, element),
            entry,
        )

    def _sequence(self, opened: _Level, position: int) -> None:
        levels = [opened]
        while levels:
            level = levels[-1]
            if level.end is not None and position >= level.end:
                _close(levels.pop())
                continue
            self._spend(1, 0)
            element = header(self._data, position, level.limit, level.form)
            if level.owner is not None:
                position = self._in_sequence(levels, element)
            else:
                position = self._in_item(levels, element)

    def _in_sequence(self, levels: list[_Level], element: Element) -> int:
        level = levels[-1]
        if element.tag == SEQUENCE_END and level.end is None:
            _close(levels.pop())
        elif element.tag == ITEM:
            end = None if element.length == UNDEFINED else element.start + element.length
            if end is not None and end > level.limit:
                raise Invalid("An item is longer than its sequence.", code="truncated")
            path = f"{level.path}/{len(level.target)}"
            item: Model = {}
            level.target.append(item)
            levels.append(
                _Level(
                    item,
                    end,
                    level.limit if end is None else end,
                    level.form,
                    level.charset,
                    level.signed,
                    path,
                    None,
                )
            )
        else:
            raise Invalid("A sequence holds something that is not an item.", code="bad-data-set")
        return element.start

    def _in_item(self, levels: list[_Level], element: Element) -> int:
        level = levels[-1]
        if element.tag == ITEM_END and level.end is None:
            levels.pop()
            return element.start
        if element.tag >> 16 == 0xFFFE:
            raise Invalid("A delimiter stands where an element should.", code="bad-data-set")
        if _vr(level, element) == "SQ":
            levels.append(self._open(level, element))
            check_depth(len(levels) // 2 + 1)
            return element.start
        if element.length == UNDEFINED:  # encapsulated pixels of an icon
            level.target[_name(element.tag)] = {
                "vr": _vr(level, element),
                "BulkDataURI": _uri(level, element),
            }
            return past_sequence(self._data, element, level.limit, level.form, self._elements_left)[0]
        if element.length > level.limit - element.start:
            raise Invalid("An element is longer than its item.", code="truncated")
        self._put(level, element)
        return element.start + element.length

    def _put(self, level: _Level, element: Element) -> None:
        if element.tag & 0xFFFF == 0:  # group lengths are not part of the model (PS3.18 §F.2.2)
            return
        vr = _vr(level, element)
        bulk = (vr in _BINARY and element.length > MAX_INLINE_BYTES) or (
            vr in _MAY_BE_BULK and element.length > MAX_LIST_BYTES
        )
        if bulk:
            entry: Model = {"vr": vr, "BulkDataURI": _uri(level, element)}
        elif element.length > MAX_TEXT_BYTES:
            return
        elif element.length:
            self._spend(0, element.length)
            raw = bytes(self._data[element.start : element.start + element.length])
            self._note(level, element.tag, raw)
            entry = _entry(level, element.tag, vr, raw)
        else:
            entry = {"vr": vr}
        self._spend(1, 0)
        level.target[_name(element.tag)] = entry

    def _note(self, level: _Level, tag: int, raw: bytes) -> None:
        if tag == CHARSET:
            level.charset = charset_of(raw)
        elif tag == PIXEL_REPRESENTATION and len(raw) >= 2:
            level.signed = level.form.u16.unpack_from(raw)[0] == 1

    def _spend(self, count: int, size: int) -> None:
        self._elements_left -= count
        self._bytes_left -= size
        if self._elements_left <= 0 or self._bytes_left < 0:
            raise Invalid("The data set's model is too large.", code="too-many-elements")


def _top(model: Model, limit: int, form: Form, charset: Charset, *, signed: bool = False) -> _Level:
    return _Level(model, None, limit, form, charset, signed, "bulkdata", None)


def _vr(level: _Level, element: Element) -> str:
    """The VR to report: the one sent, else the dictionary's; choices are made as PS3.5 §A.1 says."""
    vr = element.vr if element.vr not in ("", "UN") else vr_of(element.tag)
    if " or " in vr:
        return "OW" if "OW" in vr else ("SS" if level.signed else "US")
    if element.length == UNDEFINED and vr == "UN":
        return "SQ"
    return vr


def _close(level: _Level) -> None:
    if level.owner is not None and not level.target:
        del level.owner["Value"]


def _entry(level: _Level, tag: int, vr: str, raw: bytes) -> Model:
    if vr in _BINARY:
        return {"vr": vr, "InlineBinary": base64.b64encode(raw).decode()}
    values = _values(tag, vr, raw, level)
    return {"vr": vr, "Value": values} if any(value is not None for value in values) else {"vr": vr}


def _values(tag: int, vr: str, raw: bytes, level: _Level) -> list[Any]:
    if tag == CHARSET:
        return ["ISO_IR 192"]  # JSON is UTF-8
    if vr in _NUMBERS:
        return _numbers(_NUMBERS[vr], raw, level.form.order)
    if vr == "AT":
        return [
            f"{group:04X}{number:04X}" for group, number in iter_unpack(level.form.order + "HH", _cut(raw, 4))
        ]
    text = level.charset.text(raw, name=vr == "PN") if vr in _BY_CHARSET else raw.decode("latin-1")
    text = text.rstrip(" \0")
    if vr in _ONE_TEXT:
        return [text] if text else []
    return [_read(vr)(part.strip(" \0")) for part in text.split("\\")]


def _numbers(code: str, raw: bytes, order: str) -> list[Any]:
    found = [value for (value,) in iter_unpack(order + code, _cut(raw, _SIZES[code]))]
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in found]


def _cut(raw: bytes, size: int) -> bytes:
    return raw[: len(raw) // size * size]


def _read(vr: str) -> Callable[[str], Any]:
    return {"PN": _person, "IS": _integer, "DS": _decimal}.get(vr, _text)


def _text(value: str) -> str | None:
    return value or None


def _person(value: str) -> dict[str, str] | None:
    groups = {
        key: part.strip() for key, part in zip(_NAME_GROUPS, value.split("="), strict=False) if part.strip()
    }
    return groups or None


def _integer(value: str) -> int | None:
    return int(value) if _INTEGER.fullmatch(value) else None


def _decimal(value: str) -> float | int | None:
    if _INTEGER.fullmatch(value):
        return int(value)
    number = float(value) if _DECIMAL.fullmatch(value) else math.nan
    return number if math.isfinite(number) else None


def _name(tag: int) -> str:
    return f"{tag:08X}"


def _uri(level: _Level, element: Element) -> str:
    return f"{level.path}/{_name(element.tag)}"
