"""The elements of a data set up to its pixels, or of one item, read when asked for (PS3.5 §6.2, §7).

Holds `Header`. Leaves finding elements to `elements` and meaning to those who ask. Values are given as Python
numbers and texts; a value that is not what its representation says counts as absent, so that one bad element costs
itself alone. Nothing recurses; a long sequence of items is walked once, and only the items asked for are opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from struct import calcsize, unpack_from
from typing import Self

from consent.errors import Invalid, Sentence
from node.imaging.charsets import Charset, charset_of
from node.imaging.elements import (
    ITEM,
    ITEM_END,
    PIXEL_DATA,
    SEQUENCE_END,
    UNDEFINED,
    Buffer,
    Element,
    Form,
    encoding_of,
    form_within,
    header,
    past_sequence,
)

MAX_VALUE_BYTES = 1024 * 1024
"""Longer values are pixels, curves or documents; palettes and look-up tables are far shorter."""
MAX_VALUES = 70_000
MAX_ITEMS = 1_000_000
MAX_ELEMENTS = 100_000
_CHARSET = 0x00080005
# PS3.5 Table 6.2-1: representations that are binary numbers.
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "OW": "H", "AT": "H"}
_DECIMALS = {"DS", "IS"}


class Header:
    """Elements by tag. `pixels` is the element that holds the pixels, where there is one."""

    def __init__(self, data: Buffer, form: Form, start: int = 0, end: int | None = None) -> None:
        """Read one level of `data` from `start` to `end`, or to where an item or the pixels begin. Raises Invalid."""
        self._data = memoryview(data)
        self._form = form
        self._elements: dict[int, Element] = {}
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self.pixels: Element | None = None
        self._end = self._read(start, len(data) if end is None else end)

    @classmethod
    def of(cls, data: Buffer, transfer_syntax: str) -> Self:
        """The header of a whole data set, which must not be deflated any more. Raises Invalid."""
        return cls(data, encoding_of(transfer_syntax).form)

    def __contains__(self, tag: int) -> bool:
        return tag in self._elements

    @property
    def big_endian(self) -> bool:
        """Whether numbers are written with the highest byte first."""
        return self._form.order == ">"

    def value(self, tag: int) -> bytes:
        """The bytes of a value; empty when absent. Raises Invalid when it is far longer than such a value may be."""
        element = self._elements.get(tag)
        if element is None or element.length == UNDEFINED:
            return b""
        if element.length > MAX_VALUE_BYTES:
            raise Invalid(
                Sentence("Element %(tag)s is too long to be drawn with.", tag=format(tag, "08X")),
                code="too-long",
            )
        return bytes(self._data[element.start : element.start + element.length])

    def view(self, tag: int) -> memoryview:
        """The bytes of a value in place, of any length; empty when absent."""
        element = self._elements.get(tag)
        if element is None or element.length == UNDEFINED:
            return memoryview(b"")
        return self._data[element.start : element.start + element.length]

    def vr(self, tag: int) -> str:
        """The representation that the data set states; "" when it states none."""
        element = self._elements.get(tag)
        return element.vr if element is not None else ""

    def words(self, tag: int, *, signed: bool = False) -> tuple[int, ...]:
        """16-bit numbers, whatever the data set calls them: for elements that are "US or SS"."""
        return tuple(int(number) for number in self._unpacked(self.value(tag), "h" if signed else "H"))

    def numbers(self, tag: int, vr: str) -> tuple[float, ...]:
        """Finite numbers; `vr` is the dictionary's, used where the data set states none."""
        stated = self.vr(tag)
        kind = stated if stated in _BINARY or stated in _DECIMALS else vr
        value = self.value(tag)
        found = self._unpacked(value, _BINARY[kind]) if kind in _BINARY else _decimals(value)
        return found if all(map(math.isfinite, found)) else ()

    def number(self, tag: int, vr: str) -> float | None:
        """The first number, or None."""
        found = self.numbers(tag, vr)
        return found[0] if found else None

    def integer(self, tag: int, vr: str, default: int = 0) -> int:
        """The first number when it is a whole one, or `default`."""
        found = self.number(tag, vr)
        return int(found) if found is not None and found == int(found) else default

    def texts(self, tag: int) -> tuple[str, ...]:
        """The values of a text, without padding."""
        value = self.value(tag)
        if not value:
            return ()
        return tuple(part.strip(" \0") for part in self.charset.text(value).split("\\"))

    def text(self, tag: int) -> str:
        """The first value of a text, or ""."""
        return next(iter(self.texts(tag)), "")

    @cached_property
    def charset(self) -> Charset:
        """The character set that this level declares."""
        return charset_of(self.value(_CHARSET))

    def count(self, tag: int) -> int:
        """How many items a sequence has."""
        return len(self._items(tag))

    def item(self, tag: int, index: int = 0) -> Header | None:
        """Item `index` (from 0) of a sequence, or None when there is none."""
        ranges = self._items(tag)
        if not 0 <= index < len(ranges):
            return None
        start, end = ranges[index]
        return Header(self._data, form_within(self._elements[tag], self._form), start, end)

    def items(self, tag: int) -> Iterator[Header]:
        """The items of a sequence."""
        for index in range(self.count(tag)):
            if (found := self.item(tag, index)) is not None:
                yield found

    def _read(self, start: int, size: int) -> int:
        position, left = start, MAX_ELEMENTS
        while position < size:
            element = header(self._data, position, size, self._form)
            if element.tag == ITEM_END:
                return element.start
            if element.tag in PIXEL_DATA:
                self.pixels = element
                return element.start
            self._elements.setdefault(element.tag, element)
            position, left = _after(self._data, element, size, self._form, left)
        return position

    def _items(self, tag: int) -> list[tuple[int, int]]:
        found = self._ranges.get(tag)
        if found is None:
            element = self._elements.get(tag)
            found = self._ranges[tag] = [] if element is None else list(self._item_ranges(element))
        return found

    def _item_ranges(self, sequence: Element) -> Iterator[tuple[int, int]]:
        form = form_within(sequence, self._form)
        size = len(self._data) if sequence.length == UNDEFINED else sequence.start + sequence.length
        position = sequence.start
        for _ in range(MAX_ITEMS):
            if position >= size:
                return
            item = header(self._data, position, size, form)
            if item.tag == SEQUENCE_END:
                return
            if item.tag != ITEM:
                raise Invalid("A sequence holds something that is not an item.", code="bad-data-set")
            if item.length != UNDEFINED:
                end = position = item.start + item.length
                if end > size:
                    raise Invalid("An item is longer than its sequence.", code="truncated")
            else:
                end, position = _item_end(self._data, item.start, size, form)
            yield item.start, end
        raise Invalid(
            Sentence("A sequence has more than %(most)s items.", most=MAX_ITEMS), code="too-many-elements"
        )

    def _unpacked(self, value: bytes, kind: str) -> tuple[float, ...]:
        count = min(len(value) // calcsize("=" + kind), MAX_VALUES)
        return unpack_from(f"{self._form.order}{count}{kind}", value)


def _item_end(data: memoryview, start: int, size: int, form: Form) -> tuple[int, int]:
    """Where the content of an item of undefined length ends, and where what follows it begins."""
    position, left = start, MAX_ELEMENTS
    while True:
        element = header(data, position, size, form)
        if element.tag == ITEM_END:
            return position, element.start
        position, left = _after(data, element, size, form, left)


def _after(data: memoryview, element: Element, size: int, form: Form, left: int) -> tuple[int, int]:
    """Where the element after this one begins, and how many may still come."""
    if left <= 1 or element.tag >> 16 == 0xFFFE:
        raise Invalid("The data set is not one whose elements can be told apart.", code="bad-data-set")
    if element.length == UNDEFINED:
        return past_sequence(data, element, size, form, left)
    if element.length > size - element.start:
        raise Invalid("An element is longer than the data set.", code="truncated")
    return element.start + element.length, left - 1


def _decimals(value: bytes) -> tuple[float, ...]:
    """Decimal and integer strings; () when one of them is none."""
    found = []
    for part in value.decode("ascii", errors="replace").split("\\")[:MAX_VALUES]:
        text = part.strip(" \0")
        if not text:
            continue
        if "_" in text:
            return ()
        try:
            found.append(float(text))
        except ValueError:
            return ()
    return tuple(found)
