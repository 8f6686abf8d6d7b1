"""Single frames of a data set's pixels, as they are stored: slices of native pixels, fragments of encapsulated ones.

Holds `FramePlaces`, found from the head and the offset tables, or by walking the fragments once, without reading the
pixels between; `find_frames` does so over any reader of byte ranges. Nothing is decoded. Offsets are where the header
parser found them; every length is checked against the bytes that are there.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from struct import unpack_from
from typing import Any, TypeVar

from consent.errors import Invalid, NotFound, Sentence
from node.imaging.elements import Buffer
from node.imaging.header import Header
from node.imaging.layout import PixelLayout

MAX_FRAGMENTS = 1_000_000
MAX_HEAD_BYTES = 64 * 1024 * 1024
"""A head this long has the functional groups of tens of thousands of frames."""
LONG_BYTES = 256 * 1024
LONG_FRAMES = 5_000
_ITEM, _SEQUENCE_END = 0xE000FFFE, 0xE0DDFFFE
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
_READ_BYTES = 4096
# What a code stream begins with: SOI of JPEG and JPEG-LS; SOC and SIZ of JPEG 2000.
_STREAM_STARTS = (b"\xff\xd8", b"\xff\x4f")

ReadRange = Callable[[int, int], Awaitable[bytes]]
"""Bytes of a data set from an offset; fewer at its end."""
T = TypeVar("T")
_Asking = Generator[tuple[int, int], Buffer, T]
"""Yields what it must read as (offset, length), is sent the bytes, and returns what it found."""


@dataclass(frozen=True)
class FramePlaces:
    """Where the frames of an instance lie in its data set; `head_size` bytes before them say what they are.

    `starts` and `ends` have one entry a frame. Encapsulated frames begin with the header of their first fragment.
    """

    head_size: int
    starts: Sequence[int]
    ends: Sequence[int]
    encapsulated: bool

    def range(self, number: int) -> tuple[int, int]:
        """Offset and length of frame `number` (from 1). Raises NotFound."""
        _require_number(number, len(self.starts))
        return self.starts[number - 1], self.ends[number - 1] - self.starts[number - 1]

    def stored(self, piece: Buffer) -> bytes:
        """The frame's own bytes from those at `range`. Raises Invalid when the fragments are malformed."""
        return _joined(piece) if self.encapsulated else bytes(piece)


async def find_frames(
    read: ReadRange, pixel: Mapping[str, Any], transfer_syntax: str, frames: int, size_bytes: int
) -> FramePlaces:
    """Where the frames of an instance are. `pixel` is its place in the index; `size_bytes` is the data set's size.

    Reads the head and the offset table; where there is none, also 4 KiB at each fragment. Raises Invalid.
    """
    from asyncio import to_thread  # a worker, which has no event loop, uses the rest of this room

    search = _find(pixel, transfer_syntax, frames, size_bytes)
    step: tuple[int, int] | FramePlaces = next(search)
    while not isinstance(step, FramePlaces):
        data = await read(*step)
        # Thousands of functional groups or frames: others must not wait for them.
        long = len(data) > LONG_BYTES or frames > LONG_FRAMES
        step = await to_thread(_next, search, data) if long else _next(search, data)
    return step


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


def encapsulated_frame(
    data: Buffer, offset: int, frames: int, number: int, extended: tuple[bytes, bytes] = (b"", b"")
) -> bytes:
    """Frame `number` (from 1) of encapsulated pixels at `offset` (PS3.5 §A.4). Raises NotFound, Invalid.

    `extended` is the data set's `extended_table`.
    """
    _require_number(number, frames)
    search = _find_encapsulated(offset, frames, len(data), extended)
    step: tuple[int, int] | FramePlaces = next(search)
    while not isinstance(step, FramePlaces):
        step = _next(search, data[step[0] : step[0] + step[1]])
    start, length = step.range(number)
    return step.stored(memoryview(data)[start : start + length])


def extended_table(header: Header) -> tuple[bytes, bytes]:
    """The values of the Extended Offset Table and of its lengths; empty where the data set has none."""
    return header.value(_EXTENDED_OFFSETS), header.value(_EXTENDED_LENGTHS)


def _next(search: _Asking[FramePlaces], data: Buffer) -> tuple[int, int] | FramePlaces:
    """What the search wants to read next, or what it found."""
    try:
        return search.send(data)
    except StopIteration as done:
        found: FramePlaces = done.value
        return found


def _find(
    pixel: Mapping[str, Any], transfer_syntax: str, frames: int, size_bytes: int
) -> _Asking[FramePlaces]:
    offset = pixel["offset"]
    if offset > MAX_HEAD_BYTES:
        raise Invalid("The head of this instance is too long.", mend="Retrieve the instance.")
    header = Header.of((yield 0, offset), transfer_syntax)
    if pixel["encapsulated"]:
        return (yield from _find_encapsulated(offset, frames, size_bytes, extended_table(header)))
    layout = PixelLayout.of(header)
    first, length, _ = layout.native_place(frames)
    if first + length > (pixel["length"] or 0) or frames > MAX_FRAGMENTS:
        raise Invalid("The instance has fewer pixels than it says.", mend="Retrieve the instance.")
    places = [layout.native_place(number) for number in range(1, frames + 1)]
    starts = array("Q", (offset + first for first, _, _ in places))
    ends = array("Q", (offset + first + length for first, length, _ in places))
    return FramePlaces(offset, starts, ends, encapsulated=False)


def _find_encapsulated(
    offset: int, frames: int, size: int, extended: tuple[bytes, bytes] = (b"", b"")
) -> _Asking[FramePlaces]:
    header = yield offset, 8
    tag, length = unpack_from("<II", header) if len(header) == 8 else (0, 0)
    if tag != _ITEM or length > min(size - offset - 8, MAX_FRAGMENTS * 4):
        raise _malformed()
    first = offset + 8 + length
    if (tabled := _by_extended_table(extended, first, frames, size)) is not None:
        return FramePlaces(offset, *tabled, encapsulated=True)
    table = yield offset + 8, length
    if (tabled := _by_table(table, first, frames, size)) is not None:
        return FramePlaces(offset, *tabled, encapsulated=True)
    fragments = yield from _walk(first, size)
    return FramePlaces(offset, *_grouped(*fragments, frames), encapsulated=True)


def _by_table(
    table: Buffer, first: int, frames: int, size: int
) -> tuple[Sequence[int], Sequence[int]] | None:
    """By the Basic Offset Table, when it has an entry a frame and they ascend; else the fragments must tell."""
    if len(table) != frames * 4:
        return None
    offsets = unpack_from(f"<{frames}I", table)
    starts = array("Q", (first + offset for offset in offsets))
    ends = array("Q", (*starts[1:], size))
    if offsets[0] != 0 or any(start >= end for start, end in zip(starts, ends, strict=True)):
        return None
    return starts, ends


def _by_extended_table(
    extended: tuple[bytes, bytes], first: int, frames: int, size: int
) -> tuple[Sequence[int], Sequence[int]] | None:
    """By the Extended Offset Table (PS3.3 C.7.6.3.1.8), which has one fragment a frame."""
    offsets, lengths = extended
    if frames > MAX_FRAGMENTS or not len(offsets) == len(lengths) == frames * 8:
        return None
    if max(unpack_from(f"<{frames}Q", offsets)) > size or max(unpack_from(f"<{frames}Q", lengths)) > size:
        return None
    starts = array("Q", (first + offset for offset in unpack_from(f"<{frames}Q", offsets)))
    lasts = zip(starts, unpack_from(f"<{frames}Q", lengths), strict=True)
    ends = array("Q", (start + 8 + length + length % 2 for start, length in lasts))
    return (starts, ends) if max(ends) <= size else None


def _walk(first: int, size: int) -> _Asking[tuple[Sequence[int], Sequence[int], Sequence[bool]]]:
    """Every fragment: where its item begins, where it ends, and whether a code stream begins in it."""
    starts, ends, begins = array("Q"), array("Q"), array("B")
    position, have_from = first, first
    have: Buffer = b""
    while size - position >= 8:
        if not have_from <= position <= have_from + len(have) - 10:
            have, have_from = (yield position, _READ_BYTES), position
        at = position - have_from
        if len(have) - at < 8:
            break
        tag, length = unpack_from("<II", have, at)
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length > size - position - 8 or len(starts) >= MAX_FRAGMENTS:
            raise _malformed()
        starts.append(position)
        begins.append(bytes(have[at + 8 : at + 10]) in _STREAM_STARTS)
        position += 8 + length
        ends.append(position)
    if not starts:
        raise _malformed()
    return starts, ends, [bool(one) for one in begins]


def _grouped(
    starts: Sequence[int], ends: Sequence[int], begins: Sequence[bool], frames: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Fragments put together to frames: all of the only frame, one a frame, or from one code stream to the next."""
    if frames == 1:
        return (starts[0],), (ends[-1],)
    if len(starts) == frames:
        return starts, ends
    first = [index for index, begun in enumerate(begins) if begun]
    if len(first) != frames or first[0] != 0:
        raise Invalid("The frames of this instance cannot be told apart.", mend="Retrieve the instance.")
    last = [*(index - 1 for index in first[1:]), len(ends) - 1]
    return array("Q", (starts[index] for index in first)), array("Q", (ends[index] for index in last))


def _joined(piece: Buffer) -> bytes:
    """The fragments of one frame without their item headers; ends where the sequence does."""
    view, position = memoryview(piece), 0
    fragments: list[memoryview] = []
    while len(view) - position >= 8:
        tag, length = unpack_from("<II", view, position)
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length > len(view) - position - 8:
            raise _malformed()
        fragments.append(view[position + 8 : position + 8 + length])
        position += 8 + length
    if not fragments:
        raise _malformed()
    return b"".join(fragments)


def _malformed() -> Invalid:
    return Invalid("The encapsulated pixels are malformed.", mend="Retrieve the instance.")


def _require_number(number: int, frames: int) -> None:
    if not 1 <= number <= frames:
        raise NotFound(
            Sentence("There is no frame %(frame)s; the instance has %(frames)s.", frame=number, frames=frames)
        )
