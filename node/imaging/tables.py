"""Look-up tables of images: modality and VOI LUTs, palettes, segmented palettes (PS3.3 C.11.1.1, C.7.6.3.1.5, C.7.9.2).

Holds `LookupTable` and `Palette`. A table is read from its descriptor and its data, and the one is held against the
other: a table shorter than it says is refused, since nobody can tell what its missing values mean.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from consent.errors import Invalid
from node.imaging.header import Header

MAX_ENTRIES = 65_536
_DESCRIPTOR, _EXPLANATION, _DATA = 0x00283002, 0x00283003, 0x00283006
_RED_DESCRIPTOR, _RED_DATA, _RED_SEGMENTED = 0x00281101, 0x00281201, 0x00281221
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


@dataclass(frozen=True)
class LookupTable:
    """`data` is little-endian 16-bit entries; the first is for the value `first`, and each has `bits` bits."""

    first: int
    bits: int
    data: bytes
    explanation: str = ""

    @classmethod
    def of(cls, item: Header, *, signed: bool) -> Self:
        """Read an item of a Modality or VOI LUT Sequence; `signed` when what goes in may be negative."""
        entries, first, bits = _descriptor(item, _DESCRIPTOR, signed=signed)
        data = _entries(item, _DATA, entries)
        return cls(first, bits, data.astype("<u2").tobytes(), item.text(_EXPLANATION))

    @cached_property
    def entries(self) -> NDArray[np.uint16]:
        """What comes out."""
        return np.frombuffer(self.data, "<u2")

    def outputs(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """What values become; those before the first and behind the last entry become that."""
        places = np.clip(np.rint(np.nan_to_num(values)) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[places.astype(np.intp)], np.float64)


@dataclass(frozen=True)
class Palette:
    """`colours` is (entries, 3) of uint8; the first is for the stored value `first`."""

    first: int
    colours: NDArray[np.uint8]

    @classmethod
    def of(cls, header: Header, *, signed: bool) -> Self:
        """Read the three tables of a data set. Raises Invalid."""
        columns = [_palette_column(header, colour, signed=signed) for colour in range(3)]
        first = _descriptor(header, _RED_DESCRIPTOR, signed=signed)[1]
        if len({len(column) for column in columns}) != 1:
            raise _short()
        return cls(first, np.stack(columns, axis=1))

    def drawn(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """The colours of stored values, one axis of 3 more."""
        places = np.clip(values.astype(np.int64) - self.first, 0, len(self.colours) - 1)
        return self.colours[places]


def _descriptor(header: Header, tag: int, *, signed: bool) -> tuple[int, int, int]:
    """Number of entries (0 stands for 65536), first value mapped, bits an entry."""
    words = header.words(tag)
    if len(words) < 3 or not 8 <= words[2] <= 16:
        raise Invalid("A look-up table of this image does not say what it maps.", code="lut")
    first = header.words(tag, signed=True)[1] if signed else words[1]
    return words[0] or MAX_ENTRIES, first, words[2]


def _entries(header: Header, tag: int, count: int) -> NDArray[np.uint16]:
    """Entries as 16-bit words, or packed two to a word where there are just enough bytes for that."""
    value = header.value(tag)
    order = ">" if header.big_endian else "<"
    if len(value) >= count * 2:
        return np.frombuffer(value, order + "u2", count).astype(np.uint16)
    if len(value) < count:
        raise _short()
    if header.big_endian and header.vr(tag) == "OW":
        value = np.frombuffer(value[: len(value) & ~1], ">u2").astype("<u2").tobytes()
    return np.frombuffer(value, np.uint8, count).astype(np.uint16)


def _palette_column(header: Header, colour: int, *, signed: bool) -> NDArray[np.uint8]:
    entries, _, bits = _descriptor(header, _RED_DESCRIPTOR + colour, signed=signed)
    if _RED_SEGMENTED + colour in header:
        found = _expanded(header, _RED_SEGMENTED + colour, entries, wide=bits > 8)
    else:
        found = _entries(header, _RED_DATA + colour, entries)
    highest = int(found.max())
    if bits > 8 and highest < 256:  # said to have 16 bits by devices that write 8
        bits = 8
    elif bits == 8 and highest > 255:  # 8 bits in the upper half of the word
        bits = 16
    return (found >> (bits - 8)).astype(np.uint8)


def _expanded(header: Header, tag: int, entries: int, *, wide: bool) -> NDArray[np.uint16]:
    """Segments one after the other (PS3.3 C.7.9.2); an indirect one repeats earlier ones, but none that are indirect."""
    value = header.value(tag)
    order = ">" if header.big_endian else "<"
    words = np.frombuffer(value[: len(value) & ~1], order + "u2") if wide else np.frombuffer(value, np.uint8)
    found: list[int] = []
    position = 0
    try:
        while position < len(words) and len(found) < entries:
            if words[position] == _INDIRECT:
                offset, after = _pointer(words, position + 2, wide=wide)
                for _ in range(int(words[position + 1])):
                    offset = _segment(words, offset, found, entries)
                position = after
            else:
                position = _segment(words, position, found, entries)
    except (IndexError, ValueError, struct.error) as error:
        raise _short() from error
    if len(found) < entries:
        raise _short()
    return np.asarray(found[:entries], np.uint16)


def _pointer(words: NDArray[Any], position: int, *, wide: bool) -> tuple[int, int]:
    """Where an indirect segment points, as a place in `words`, and what follows it. The offset counts bytes."""
    if wide:
        return (int(words[position]) | int(words[position + 1]) << 16) // 2, position + 2
    parts = words[position : position + 4].tolist()
    if len(parts) != 4:
        raise _short()
    return int.from_bytes(bytes(parts), "little"), position + 4


def _segment(words: NDArray[Any], position: int, found: list[int], entries: int) -> int:
    """Add one discrete or linear segment to `found`; return where the next one begins."""
    kind, count = int(words[position]), int(words[position + 1])
    if len(found) > entries:
        raise _short()
    if kind == _DISCRETE and count:
        values = words[position + 2 : position + 2 + count]
        if len(values) != count:
            raise _short()
        found.extend(values.tolist())
        return position + 2 + count
    if kind != _LINEAR or not found or not count:
        raise Invalid("A palette of this image has segments that are none of the standard's.", code="lut")
    start, end = found[-1], int(words[position + 2])
    found.extend(round(start + (end - start) * step / count) for step in range(1, count + 1))
    return position + 3


def _short() -> Invalid:
    return Invalid(
        "A look-up table of this image is shorter than it says.", mend="Download the instance.", code="lut"
    )
