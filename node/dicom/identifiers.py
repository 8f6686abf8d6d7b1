"""Identifiers of queries and retrievals: data sets of keys, read within bounds, and answers written (PS3.4 §C.2.2, §C.4).

Pure. Only what the index knows is decoded; everything else is passed over by its length, however deep it is nested. Text
is read in the character set that the identifier names and written in the same one where that can hold it, else in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from struct import pack
from typing import Any

from consent.errors import Invalid
from node.imaging.charsets import Charset, charset_of
from node.imaging.elements import (
    UNDEFINED,
    Buffer,
    Element,
    Form,
    elements,
    encoding_of,
    items,
)
from node.index.query import Attribute, attribute_of

MAX_IDENTIFIER_BYTES = 256 * 1024
MAX_KEYS = 1024
MAX_VALUE_BYTES = 64 * 1024
MAX_LISTED_BYTES = 65_000
"""How much a list of UIDs in an answer takes: its length has 16 bits (PS3.5 §7.1.2)."""
UTF_8 = "ISO_IR 192"

CHARSET = 0x00080005
LEVEL = 0x00080052
RETRIEVE_AE_TITLE = 0x00080054
AVAILABILITY = 0x00080056
_TEXT = frozenset({"LO", "SH", "PN", "LT", "ST", "UT", "UC"})


@dataclass(frozen=True)
class Identifier:
    """What a peer asked. `asked` are the tags in its order; `keys` maps attribute keywords, or SEQUENCE.KEYWORD, to
    non-empty matching values; `wanted` lists the known attributes that are to be returned; `unknown` counts the others."""

    level: str
    charset: Charset
    asked: tuple[int, ...]
    keys: Mapping[str, str] = field(repr=False)
    wanted: tuple[Attribute, ...] = ()
    unknown: int = 0


def read_identifier(data: Buffer, transfer_syntax: str) -> Identifier:
    """Read an identifier. Raises Invalid when it is malformed or passes a bound."""
    if len(data) > MAX_IDENTIFIER_BYTES:
        raise Invalid(f"An identifier has at most {MAX_IDENTIFIER_BYTES >> 10} KiB.", code="too-large")
    form = encoding_of(transfer_syntax).form
    found: dict[int, Element] = {}
    for element in elements(data, form):
        if element.tag in found:
            raise Invalid(f"Key {element.tag:08X} stands there twice.", code="bad-identifier")
        if len(found) >= MAX_KEYS:
            raise Invalid(f"An identifier has at most {MAX_KEYS} keys.", code="too-many-keys")
        found[element.tag] = element
    charset = charset_of(_value(data, found.get(CHARSET)))
    keys: dict[str, str] = {}
    wanted: list[Attribute] = []
    unknown = 0
    for tag, element in found.items():
        attribute = attribute_of(f"{tag:08X}")
        if attribute is None:
            unknown += tag not in (CHARSET, LEVEL, RETRIEVE_AE_TITLE, AVAILABILITY)
            continue
        wanted.append(attribute)
        if attribute.vr == "SQ":
            keys |= _item_keys(data, element, form, attribute, charset)
        elif value := _text(data, element, attribute.vr, charset):
            keys[attribute.keyword] = value
    level = _value(data, found.get(LEVEL)).decode("ascii", errors="replace").strip(" \0")
    return Identifier(level, charset, tuple(found), keys, tuple(wanted), unknown)


def write_identifier(values: Mapping[int, tuple[str, Any]], transfer_syntax: str, charset: Charset) -> bytes:
    """A data set of (VR, value) by tag, in order; of `charset` where that holds the text, else of UTF-8.

    A sequence's value is a list of such mappings. Specific Character Set is added when text needs one.
    """
    form = encoding_of(transfer_syntax).form
    if charset.known and (encoded := _encoded(values, form, charset)) is not None:
        return encoded
    plain = all(text.isascii() for text in _texts(values))
    encoded = _encoded(values, form, charset_of(b"" if plain else UTF_8.encode()))
    assert encoded is not None
    return encoded


def failed_instances(sop_instance_uids: Iterable[str], transfer_syntax: str) -> bytes:
    """The identifier of a final response that names what failed (0008,0058), as many as its length lets it."""
    listed: list[str] = []
    left = MAX_LISTED_BYTES
    for uid in sop_instance_uids:
        left -= len(uid) + 1
        if left < 0:
            break
        listed.append(uid)
    return write_identifier({0x00080058: ("UI", "\\".join(listed))}, transfer_syntax, charset_of(b""))


def answer_element(attribute: Attribute, value: Any) -> tuple[str, Any]:
    """A value of the index as `write_identifier` takes it."""
    if attribute.vr != "SQ":
        return attribute.vr, value
    return "SQ", [
        {
            int(inner.tag, 16): answer_element(inner, item.get(keyword))
            for keyword, inner in attribute.items.items()
        }
        for item in value or ()
    ]


def _value(data: Buffer, element: Element | None) -> bytes:
    if element is None or element.length == UNDEFINED:
        return b""
    if element.length > min(MAX_VALUE_BYTES, len(data) - element.start):
        raise Invalid(f"The value of key {element.tag:08X} is too long.", code="bad-identifier")
    return bytes(data[element.start : element.start + element.length])


def _text(data: Buffer, element: Element, vr: str, charset: Charset) -> str:
    value = _value(data, element)
    if vr == "US":
        return str(int.from_bytes(value[:2], "little")) if len(value) >= 2 else ""
    text = charset.text(value, name=vr == "PN") if vr in _TEXT else value.decode("ascii", errors="replace")
    return text.strip(" \0")


def _item_keys(
    data: Buffer, sequence: Element, form: Form, attribute: Attribute, charset: Charset
) -> dict[str, str]:
    """The keys inside a sequence: one item at most (PS3.4 §C.2.2.2.6)."""
    of_items = {int(item.tag, 16): item for item in attribute.items.values()}
    keys: dict[str, str] = {}
    for number, item in enumerate(items(data, sequence, form, limit=2)):
        if number:
            raise Invalid(f"Key {sequence.tag:08X} has more than one item.", code="bad-identifier")
        for element in item:
            inner = of_items.get(element.tag)
            if inner is not None and (value := _text(data, element, inner.vr, charset)):
                keys[f"{attribute.keyword}.{inner.keyword}"] = value
    return keys


def _texts(values: Mapping[int, tuple[str, Any]]) -> Iterable[str]:
    for vr, value in values.values():
        if vr == "SQ":
            for item in value or ():
                yield from _texts(item)
        elif vr in _TEXT and value:
            yield str(value)


def _encoded(
    values: Mapping[int, tuple[str, Any]], form: Form, charset: Charset, *, named: bool = True
) -> bytes | None:
    """None when the character set does not hold a text. `named`: the set is to be named, as the items of a sequence do
    not."""
    own = {CHARSET: ("CS", "\\".join(charset.terms))} if named and charset.terms else {}
    out = bytearray()
    for tag, (vr, value) in sorted((dict(values) | own).items()):
        raw = _items(value, form, charset) if vr == "SQ" else _raw(vr, value, charset)
        if raw is None:
            return None
        out += _head(tag, vr, len(raw), form) + raw
    return bytes(out)


def _items(value: Iterable[Mapping[int, tuple[str, Any]]], form: Form, charset: Charset) -> bytes | None:
    out = bytearray()
    for item in value:
        encoded = _encoded(item, form, charset, named=False)
        if encoded is None:
            return None
        out += pack("<HHI", 0xFFFE, 0xE000, len(encoded)) + encoded
    return bytes(out)


def _raw(vr: str, value: Any, charset: Charset) -> bytes | None:
    if value is None or value == "":
        return b""
    if vr == "US":
        return pack("<H", int(value) & 0xFFFF)
    if vr in _TEXT:
        raw = charset.encode(str(value), name=vr == "PN")
        if raw is None:
            return None
    else:
        raw = str(value).encode("ascii", errors="replace")
    return raw + (b"\0" if vr == "UI" else b" ") if len(raw) % 2 else raw


def _head(tag: int, vr: str, size: int, form: Form) -> bytes:
    if not form.explicit:
        return pack("<HHI", tag >> 16, tag & 0xFFFF, size)
    if vr == "SQ":
        return pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, size)
    return pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), size)
