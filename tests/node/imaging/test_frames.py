"""Frames cut out as they are stored, and hostile pixels that cannot be cut."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest

from consent.errors import Invalid, NotFound
from node.imaging.frames import element_value, encapsulated_frame, native_range
from tests.support.dicom import DEFLATED, EXPLICIT, ct_slice

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
    assert element_value(one.data, EXPLICIT, 0x00100020) == b"P-0001"
    with pytest.raises(NotFound):
        element_value(one.data, EXPLICIT, 0x00100021)
    with pytest.raises(Invalid):
        element_value(ct_slice(transfer_syntax=DEFLATED).data, DEFLATED, 0x00100020)
