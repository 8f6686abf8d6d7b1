"""Single frames of a data set's pixels, as they are stored: slices of native pixels, fragments of encapsulated ones.

Nothing is decoded. Offsets are where the header parser found them; every length is checked against the bytes
that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import unpack_from
from typing import Any

from consent.errors import Invalid, NotFound
from node.imaging.elements import UNDEFINED, elements, encoding_of

MAX_FRAGMENTS = 1_000_000
_ITEM, _SEQUENCE_END = 0xE000FFFE, 0xE0DDFFFE


def native_frame_bytes(pixel: Mapping[str, Any], rows: int | None, columns: int | None) -> int:
    """The size of one native frame. Raises Invalid when it is not a whole number of bytes."""
    bits = (rows or 0) * (columns or 0) * (pixel["samples"] or 1) * (pixel["bits_allocated"] or 0)
    if bits <= 0 or bits % 8:
        raise Invalid("The frames of this instance cannot be told apart.", mend="Retrieve the instance.")
    return bits // 8


def native_range(
    pixel: Mapping[str, Any], rows: int | None, columns: int | None, frames: int, number: int
) -> tuple[int, int]:
    """Offset and length of native frame `number` (from 1) in the data set. Raises NotFound, Invalid."""
    _require_number(number, frames)
    size = native_frame_bytes(pixel, rows, columns)
    if number * size > (pixel["length"] or 0):
        raise Invalid("The instance has fewer pixels than it says.", mend="Retrieve the instance.")
    return pixel["offset"] + (number - 1) * size, size


def encapsulated_frame(data: bytes, offset: int, frames: int, number: int) -> bytes:
    """Frame `number` (from 1) of encapsulated pixels at `offset` (PS3.5 §A.4). Raises NotFound, Invalid."""
    _require_number(number, frames)
    table, fragments = _fragments(data, offset)
    if frames == 1:
        return b"".join(data[start:end] for start, end in fragments)
    if len(fragments) == frames:
        start, end = fragments[number - 1]
        return data[start:end]
    if len(table) != frames or not fragments:
        raise Invalid("The frames of this instance cannot be told apart.", mend="Retrieve the instance.")
    first = fragments[0][0] - 8
    begin = first + table[number - 1]
    stop = first + table[number] if number < frames else len(data)
    return b"".join(data[start:end] for start, end in fragments if begin <= start - 8 < stop)


def element_value(data: bytes, transfer_syntax: str, tag: int) -> bytes:
    """The value of a top-level element as it is stored. Raises NotFound, Invalid."""
    encoding = encoding_of(transfer_syntax)
    if encoding.deflated:
        raise Invalid("The elements of a deflated instance lie together.", mend="Retrieve the instance.")
    for element in elements(data, encoding.form):
        if element.tag == tag and element.length != UNDEFINED:
            return data[element.start : element.start + element.length]
        if element.tag >= tag:
            break
    raise NotFound("There is no such element with a value of its own in this instance.")


def _fragments(data: bytes, offset: int) -> tuple[Sequence[int], list[tuple[int, int]]]:
    """The Basic Offset Table and the places of the fragments behind it."""
    places: list[tuple[int, int]] = []
    position = offset
    while len(data) - position >= 8:
        tag, length = unpack_from("<II", data, position)
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length > len(data) - position - 8 or len(places) > MAX_FRAGMENTS:
            raise Invalid("The encapsulated pixels are malformed.", mend="Retrieve the instance.")
        places.append((position + 8, position + 8 + length))
        position += 8 + length
    if not places:
        raise Invalid("The encapsulated pixels are malformed.", mend="Retrieve the instance.")
    start, end = places[0]
    table = unpack_from(f"<{(end - start) // 4}I", data, start)
    return table, places[1:]


def _require_number(number: int, frames: int) -> None:
    if not 1 <= number <= frames:
        raise NotFound(f"There is no frame {number}; the instance has {frames}.")
