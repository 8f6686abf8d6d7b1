"""Frames cut out as they are stored, and hostile pixels that cannot be cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from struct import pack
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from consent.errors import Invalid, NotFound
from node.imaging.attributes import read_attributes
from node.imaging.bulk import value_at
from node.imaging.frames import FramePlaces, encapsulated_frame, find_frames, native_range
from node.index.index import pixel_place
from tests.support.dicom import BIG_ENDIAN, DEFLATED, EXPLICIT, Instance, ct_slice
from tests.support.images import image

END = pack("<II", 0xE0DDFFFE, 0)


def item(content: bytes) -> bytes:
    return pack("<II", 0xE000FFFE, len(content)) + content


def pixels(fragments: list[bytes], offsets: list[int] | None = None) -> bytes:
    table = b"".join(pack("<I", offset) for offset in offsets or [])
    return b"head" + item(table) + b"".join(map(item, fragments)) + END


@pytest.mark.parametrize(
    ("data", "frames", "expected"),
    [
        (pixels([b"one1"]), 1, [b"one1"]),
        (pixels([b"on", b"e1"]), 1, [b"one1"]),
        (pixels([b"aa", b"bb", b"cc"]), 3, [b"aa", b"bb", b"cc"]),
        (pixels([b"a1", b"a2", b"b1"], [0, 20]), 2, [b"a1a2", b"b1"]),
        (pixels([b"aa"])[: -len(END)], 1, [b"aa"]),
    ],
    ids=["one fragment", "one frame in two", "a fragment each", "by offset table", "no end marker"],
)
def test_encapsulated_frames_are_put_together(data: bytes, frames: int, expected: list[bytes]) -> None:
    """By number, by the Basic Offset Table, or all fragments of the only frame (PS3.5 §A.4)."""
    assert [encapsulated_frame(data, 4, frames, number + 1) for number in range(frames)] == expected


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    ("data", "frames"),
    [
        (b"head", 1),
        (b"head" + pack("<II", 0xE000FFFE, 2**31), 1),
        (b"head" + pack("<II", 0x00100010, 4) + b"xxxx", 1),
        (pixels([b"aa", b"bb", b"cc"]), 2),
        (pixels([], [0, 0]), 2),
    ],
    ids=["nothing", "length past the end", "no item", "no telling which", "a table alone"],
)
def test_malformed_encapsulation_is_refused(data: bytes, frames: int) -> None:
    """Lengths are held against the bytes that are there; nothing is guessed."""
    with pytest.raises(Invalid):
        encapsulated_frame(data, 4, frames, 1)


NATIVE: dict[str, Any] = {"offset": 100, "length": 64, "samples": 1, "bits_allocated": 16}


def test_native_frames_are_slices() -> None:
    """Offset and length follow from rows, columns, samples and bits."""
    assert native_range(NATIVE, 4, 4, 2, 1) == (100, 32)
    assert native_range(NATIVE, 4, 4, 2, 2) == (132, 32)
    with pytest.raises(NotFound):
        native_range(NATIVE, 4, 4, 2, 3)


@pytest.mark.parametrize(
    ("pixel", "rows"),
    [
        (NATIVE, 400),
        (NATIVE, None),
        ({**NATIVE, "bits_allocated": 1}, 3),
        ({**NATIVE, "bits_allocated": None}, 4),
    ],
    ids=["more than there is", "no rows", "bits that are no bytes", "no bits"],
)
def test_pixels_that_cannot_be_told_apart_are_refused(pixel: dict[str, Any], rows: int | None) -> None:
    """A header that lies about its pixels gives no frame."""
    with pytest.raises(Invalid):
        native_range(pixel, rows, 3, 2, 1)


def test_elements_are_found_by_tag() -> None:
    """The bytes of a top-level element; what is not there, or lies deflated, is refused."""
    one = ct_slice()
    assert value_at(one.data, EXPLICIT, "00100020") == b"P-0001"
    with pytest.raises(NotFound):
        value_at(one.data, EXPLICIT, "00100021")
    with pytest.raises(Invalid):
        value_at(ct_slice(transfer_syntax=DEFLATED).data, DEFLATED, "00100020")


RLE = "1.2.840.10008.1.2.5"


class Reads:
    """A reader of ranges that counts what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes = 0

    async def __call__(self, offset: int, length: int) -> bytes:
        self.bytes += length
        return self.data[offset : offset + length]


async def places_of(one: Instance, reads: Callable[[int, int], Awaitable[bytes]]) -> FramePlaces:
    found = read_attributes(one.data, one.transfer_syntax_uid)
    place = pixel_place(found)
    assert place is not None
    return await find_frames(reads, place, one.transfer_syntax_uid, found.frames, len(one.data))


def cut(one: Instance, places: FramePlaces, number: int) -> bytes:
    start, length = places.range(number)
    return places.stored(one.data[start : start + length])


@pytest.mark.parametrize("table", [True, False])
async def test_frames_are_found_without_reading_the_pixels_between(table: bool) -> None:
    """By the offset table, or by the fragments' own headers; a frame then costs its own bytes."""
    stream = [bytes([number]) * (100_000 + 2 * number) for number in range(6)]
    one = image(np.zeros((6, 4, 4), np.uint8), syntax=RLE, stream=stream, table=table)
    reads = Reads(one.data)
    places = await places_of(one, reads)

    assert [cut(one, places, number) for number in range(1, 7)] == stream
    assert reads.bytes < 30_000
    with pytest.raises(NotFound):
        places.range(7)


async def test_frames_of_several_fragments_are_told_apart_by_their_streams() -> None:
    """Without a table a new code stream begins a new frame (PS3.5 §A.4.1)."""
    parts = [b"\xff\xd8a1", b"a2a2", b"\xff\xd8b1", b"\xff\xd8c1", b"c2"]
    data = pixels(parts)
    assert [encapsulated_frame(data, 4, 3, number) for number in (1, 2, 3)] == [
        b"\xff\xd8a1a2a2", b"\xff\xd8b1", b"\xff\xd8c1c2",
    ]  # fmt: skip


async def test_the_extended_offset_table_finds_frames() -> None:
    """PS3.3 C.7.6.3.1.8; one whose entries lie outside is passed over."""
    fragments = [b"aaaa", b"bb", b"cccccc"]
    extra = Dataset()
    for offsets, right in (([0, 12, 22], True), ([0, 12, 1 << 60], False)):
        extra.ExtendedOffsetTable = pack("<3Q", *offsets)
        extra.ExtendedOffsetTableLengths = pack("<3Q", 4, 2, 6)
        one = image(np.zeros((3, 4, 4), np.uint8), syntax=RLE, stream=fragments, table=False, extra=extra)
        reads = Reads(one.data)
        places = await places_of(one, reads)
        assert [cut(one, places, number) for number in (1, 2, 3)] == fragments
        assert (reads.bytes < 1_500) is right


@pytest.mark.parametrize("offsets", [[0, 10, 10], [0, 4, 2], [2, 12, 24], [0, 12, 1 << 31]], ids=str)
def test_offset_tables_that_lie_are_not_believed(offsets: list[int]) -> None:
    """Entries that do not ascend within the pixels are passed over; the fragments tell."""
    data = pixels([b"aaaa", b"bbbb", b"cccc"], offsets)
    assert [encapsulated_frame(data, 4, 3, number) for number in (1, 2, 3)] == [b"aaaa", b"bbbb", b"cccc"]


def test_an_offset_that_points_into_a_fragment_is_refused() -> None:
    """Where the table says that a frame begins, an item must stand."""
    data = pixels([b"aaaa", b"bbbb", b"cccc"], [0, 11, 24])
    with pytest.raises(Invalid):
        encapsulated_frame(data, 4, 3, 2)


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
async def test_native_frames_are_found_also_where_they_share_bytes(syntax: str) -> None:
    """Frames of one bit a pixel begin inside bytes; YBR_FULL_422 has two bytes a pixel."""
    one = image(np.ones((3, 3, 3), np.uint8), syntax=syntax, BitsAllocated=1, BitsStored=1, HighBit=0)
    places = await places_of(one, Reads(one.data))
    first = places.head_size
    assert [places.range(number) for number in (1, 2, 3)] == [(first, 2), (first + 1, 2), (first + 2, 2)]

    shared = image(
        np.zeros((2, 4, 4, 3), np.uint8)[:, :, :3],
        samples=3, syntax=syntax, PhotometricInterpretation="YBR_FULL_422", Columns=4, Rows=4,
    )  # fmt: skip
    places = await places_of(shared, Reads(shared.data))
    assert places.range(2) == (places.head_size + 32, 32)


@pytest.mark.requirement("F4")
async def test_more_frames_than_there_are_pixels_are_refused() -> None:
    """A number of frames that the pixels cannot hold finds none, at once."""
    for frames in (5, 2**31 - 1):
        one = image(np.zeros((4, 8, 8), np.uint16), frames=frames)
        with pytest.raises(Invalid):
            await places_of(one, Reads(one.data))
