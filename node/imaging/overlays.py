"""Overlays: bitmaps drawn in white over the picture (PS3.3 C.9.2, retired C.9.3 for those in unused bits of pixels).

A plane may be smaller or larger than the image and lie anywhere; what falls outside is cut. A broken plane is left out:
it must not hide the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.imaging.decode import StoredFrame
from node.imaging.header import Header
from node.imaging.layout import PixelLayout

GROUPS = range(0x6000, 0x6020, 2)
MAX_PLANE_PIXELS = 64 * 1024 * 1024
WHITE = 255
_ROWS, _COLUMNS, _FRAMES, _ORIGIN, _FRAME_ORIGIN = 0x0010, 0x0011, 0x0015, 0x0050, 0x0051
_BITS_ALLOCATED, _BIT_POSITION, _DATA = 0x0100, 0x0102, 0x3000


@dataclass(frozen=True)
class Plane:
    """One overlay of one frame: `bits` is (rows, columns) of bool; its first pixel lies at `top`, `left` of the image."""

    bits: NDArray[np.bool_]
    top: int
    left: int


def draw_overlays(picture: NDArray[np.uint8], stored: StoredFrame) -> NDArray[np.uint8]:
    """The picture with the overlays of its frame; the picture itself when there are none."""
    planes = list(planes_of(stored))
    if not planes:
        return picture
    drawn = picture.copy()
    height, width = drawn.shape[:2]
    for plane in planes:
        top, left = max(0, plane.top), max(0, plane.left)
        bottom = min(height, plane.top + plane.bits.shape[0])
        right = min(width, plane.left + plane.bits.shape[1])
        if top < bottom and left < right:
            bits = plane.bits[top - plane.top : bottom - plane.top, left - plane.left : right - plane.left]
            drawn[top:bottom, left:right][bits] = WHITE
    return drawn


def planes_of(stored: StoredFrame) -> Iterator[Plane]:
    """The overlay planes that belong to the frame."""
    for group in GROUPS:
        base = group << 16
        if base | _DATA in stored.header:
            plane = _separate(stored.header, base, stored.frame)
        elif base | _BIT_POSITION in stored.header:
            plane = _embedded(stored, base)
        else:
            continue
        if plane is not None:
            yield plane


def _separate(header: Header, base: int, frame: int) -> Plane | None:
    rows, columns = header.integer(base | _ROWS, "US"), header.integer(base | _COLUMNS, "US")
    size = rows * columns
    index = _plane_of_frame(header, base, frame)
    value = header.view(base | _DATA)
    if index is None or not 0 < size <= MAX_PLANE_PIXELS or (index + 1) * size > len(value) * 8:
        return None
    # Planes follow each other bit by bit, without padding; swapped words are never cut in two.
    first = index * size // 16 * 2
    piece = np.frombuffer(value[first : -(-(index + 1) * size // 16) * 2], np.uint8)
    if header.big_endian and header.vr(base | _DATA) != "OB":
        piece = piece[: len(piece) & ~1].view(np.uint16).byteswap().view(np.uint8)
    skip = index * size - first * 8
    bits = np.unpackbits(piece, count=skip + size, bitorder="little")[skip:]
    return Plane(bits.reshape(rows, columns).astype(bool), *_origin(header, base))


def _embedded(stored: StoredFrame, base: int) -> Plane | None:
    header, layout = stored.header, stored.layout
    position = header.integer(base | _BIT_POSITION, "US")
    if not _is_free(position, layout) or header.integer(base | _BITS_ALLOCATED, "US") not in (
        layout.bits_allocated,
        0,
    ):
        return None
    bits = (stored.cells >> stored.cells.dtype.type(position)) & stored.cells.dtype.type(1)
    return Plane(bits.astype(bool), *_origin(header, base))


def _is_free(position: int, layout: PixelLayout) -> bool:
    """Whether a bit of a grey image's cells is not one of the stored value's."""
    lowest = layout.high_bit + 1 - layout.bits_stored
    stored = lowest <= position <= layout.high_bit
    return (
        layout.samples == 1 and not layout.floating and 0 <= position < layout.bits_allocated and not stored
    )


def _plane_of_frame(header: Header, base: int, frame: int) -> int | None:
    """Which of a multi-frame overlay's planes lies over the frame (PS3.3 C.9.2.1); a single one lies over all."""
    if base | _FRAMES not in header:
        return 0
    frames = max(1, header.integer(base | _FRAMES, "IS", 1))
    index = frame - max(1, header.integer(base | _FRAME_ORIGIN, "US", 1))
    return index if 0 <= index < frames else None


def _origin(header: Header, base: int) -> tuple[int, int]:
    """Top and left of the plane in the image, from 0; the standard counts from 1."""
    origin = header.numbers(base | _ORIGIN, "SS")
    return (int(origin[0]) - 1, int(origin[1]) - 1) if len(origin) == 2 else (0, 0)
