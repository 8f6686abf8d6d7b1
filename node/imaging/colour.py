"""Colour images: palettes and YBR to RGB of 8 bits (PS3.3 C.7.6.3.1.2).

(rows, columns) for palettes or (rows, columns, 3) goes in, (rows, columns, 3) of uint8 comes out. Windows do not apply.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.imaging.decode import StoredFrame
from node.imaging.grayscale import stored_values
from node.imaging.layout import PALETTE
from node.imaging.tables import Palette

_PALETTE_DESCRIPTOR, _PIXEL_PRESENTATION = 0x00281101, 0x00089205
_CHROMA = np.arange(256) - 128
_RED_ADDS = np.rint(1.402 * _CHROMA).astype(np.int16)
_GREEN_ADDS = np.rint(-0.344136 * _CHROMA[:, None] - 0.714136 * _CHROMA).astype(np.int16)
_BLUE_ADDS = np.rint(1.772 * _CHROMA).astype(np.int16)
# ITU-R BT.601 in its narrow range, as PS3.3 C.7.6.3.1.2 gives it for YBR_PARTIAL.
_FROM_PARTIAL = np.array(
    ((1.1644, 0.0, 1.5960), (1.1644, -0.3917, -0.8130), (1.1644, 2.0173, 0.0)), np.float32
)
_PARTIAL_ZERO = np.array((16, 128, 128), np.float32)


def draw_colour(stored: StoredFrame) -> NDArray[np.uint8]:
    """The picture of a colour image. Raises Invalid when its palette is broken."""
    layout = stored.layout
    if layout.photometric == PALETTE:
        palette = Palette.of(stored.header, signed=layout.signed)
        cells = stored.cells
        if cells.dtype.itemsize > 2:
            return palette.drawn(stored_values(cells, layout))
        every = np.arange(1 << (8 * cells.dtype.itemsize), dtype=cells.dtype)
        return palette.drawn(stored_values(every, layout)).take(cells, axis=0)
    picture = _to_bytes(stored.cells, layout.bits_stored)
    if stored.rgb or layout.photometric in ("RGB", "YBR_ICT", "YBR_RCT"):
        return picture
    if layout.photometric == "YBR_PARTIAL_422":
        return _from_partial(picture)
    return _from_full(picture)


def coloured_above_grey(picture: NDArray[np.uint8], stored: StoredFrame) -> NDArray[np.uint8]:
    """A grey picture whose values in a supplemental palette are drawn in its colours (PS3.3 C.7.6.19)."""
    header = stored.header
    if _PALETTE_DESCRIPTOR not in header or header.text(_PIXEL_PRESENTATION) not in ("COLOR", "MIXED"):
        return picture
    palette = Palette.of(header, signed=stored.layout.signed)
    values = stored_values(stored.cells, stored.layout)
    inside = (values >= palette.first) & (values < palette.first + len(palette.colours))
    return np.where(inside[..., None], palette.drawn(values), picture[..., None]).astype(np.uint8)


def _to_bytes(cells: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if bits < 8:
        return (cells.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return (cells >> cells.dtype.type(bits - 8)).astype(np.uint8) if bits > 8 else cells.astype(np.uint8)


def _from_full(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """YBR_FULL, rounded once: what each chrominance adds is looked up."""
    light = picture[..., 0].astype(np.int16)
    blue, red = picture[..., 1], picture[..., 2]
    found = np.empty(picture.shape, np.uint8)
    found[..., 0] = np.clip(light + _RED_ADDS[red], 0, 255)
    found[..., 1] = np.clip(light + _GREEN_ADDS[blue, red], 0, 255)
    found[..., 2] = np.clip(light + _BLUE_ADDS[blue], 0, 255)
    return found


def _from_partial(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    whole = (picture.astype(np.float32) - _PARTIAL_ZERO) @ _FROM_PARTIAL.T
    return np.clip(whole + np.float32(0.5), 0, 255).astype(np.uint8)
