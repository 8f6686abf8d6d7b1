"""Grey images: stored values to shades of grey, by the order of the standard (PS3.4 N.2, PS3.3 C.11).

Modality LUT or rescale → VOI LUT or window → polarity. What applies to a frame is read from its functional groups first
(PS3.3 C.7.6.16), then from the image. Cells of up to 16 bits go through one table of all their values, which is kept
for the next image that means the same; wider ones and floating ones are worked out one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consent.errors import Invalid
from node.imaging.decode import StoredFrame
from node.imaging.header import Header
from node.imaging.layout import PixelLayout
from node.imaging.tables import LookupTable
from node.imaging.window import LINEAR, LINEAR_EXACT, SIGMOID, Window

MAX_PRESETS = 64
MAX_SAMPLED = 4_000_000
BLOCK_CELLS = 4_000_000
SHOWN = (0.005, 0.995)
"""Which part of the values is spread over the greys where no window says it: all but the last half per cent each side."""
_PER_FRAME, _SHARED = 0x52009230, 0x52009229
_TRANSFORMATION, _FRAME_VOI = 0x00289145, 0x00289132
_MODALITY_LUT, _VOI_LUT = 0x00283000, 0x00283010
_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
_X_RAY = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.12.3")


@dataclass(frozen=True)
class Rescale:
    """Modality values are `slope` times stored values plus `intercept` (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def outputs(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Modality values."""
        return np.asarray(values * self.slope + self.intercept, np.float64)


@dataclass(frozen=True)
class Spread:
    """From black at `low` to white at `high`, where no window says what to show."""

    low: float
    high: float


@dataclass(frozen=True)
class Preset:
    """One of the views that an image offers: a window or a VOI LUT, and what its maker calls it."""

    voi: Window | LookupTable
    explanation: str = ""


@dataclass(frozen=True)
class Transform:
    """Everything between stored values and greys. Two images with the same one look alike where they are alike."""

    modality: Rescale | LookupTable
    voi: Window | LookupTable | Spread
    inverse: bool

    def greys(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Greys from 0 to 255 of stored values. What is no number is black."""
        shades = np.nan_to_num(shades_of(self.voi, self.modality.outputs(values)), nan=0.0)
        found = (shades * 255 + 0.5).astype(np.uint8)
        return 255 - found if self.inverse else found


def draw_grey(stored: StoredFrame, window: Window | None = None, preset: int | str = "") -> NDArray[np.uint8]:
    """The picture, (rows, columns). `window`, else the `preset` by number (from 1) or name, else the image's first.

    Raises Invalid when there is no such preset.
    """
    modality = modality_of(stored.header, stored.frame, stored.layout)
    voi = _chosen(stored, modality, window, preset)
    transform = Transform(modality, voi, _inverse(stored))
    cells, layout = stored.cells, stored.layout
    if cells.dtype.itemsize <= 2 and cells.dtype.kind == "u":
        return _table(transform, cells.dtype.itemsize, layout).take(cells)
    picture = np.empty(cells.shape, np.uint8)
    step = max(1, BLOCK_CELLS // cells.shape[1])
    for row in range(0, cells.shape[0], step):
        picture[row : row + step] = transform.greys(stored_values(cells[row : row + step], layout))
    return picture


def shades_of(voi: Window | LookupTable | Spread, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Modality values to shades from 0 (black) to 1 (white), by PS3.3 C.11.2.1. NaN stays NaN."""
    if isinstance(voi, LookupTable):
        return np.clip(voi.outputs(values) / ((1 << voi.bits) - 1), 0, 1)
    if isinstance(voi, Spread):
        return np.clip((values - voi.low) / max(voi.high - voi.low, 1e-12), 0, 1)
    if voi.function == SIGMOID:
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - voi.centre) / voi.width)))
    if voi.function == LINEAR_EXACT:
        return np.clip((values - voi.centre) / voi.width + 0.5, 0, 1)
    middle = voi.centre - 0.5
    if voi.width <= 1:
        return np.asarray(values > middle, np.float64)
    return np.clip((values - middle) / (voi.width - 1) + 0.5, 0, 1)


def presets_of(header: Header, frame: int, layout: PixelLayout) -> tuple[Preset, ...]:
    """The views that an image offers for a frame, VOI LUTs before windows; those that make no sense are left out."""
    source = functional_group(header, frame, _FRAME_VOI) or header
    signed = layout.signed or _rescaled_below_zero(header, frame, layout)
    found: list[Preset] = []
    for index in range(min(source.count(_VOI_LUT), MAX_PRESETS)):
        item = source.item(_VOI_LUT, index)
        try:
            assert item is not None
            table = LookupTable.of(item, signed=signed)
        except Invalid:
            continue  # a broken table must not hide the picture
        found.append(Preset(table, table.explanation))
    function = source.text(0x00281056) or LINEAR
    names = source.texts(0x00281055)
    pairs = zip(source.numbers(0x00281050, "DS"), source.numbers(0x00281051, "DS"), strict=False)
    for number, (centre, width) in enumerate(list(pairs)[:MAX_PRESETS]):
        window = Window(centre, width, function if function in (SIGMOID, LINEAR_EXACT) else LINEAR)
        if window.valid:
            found.append(Preset(window, names[number] if number < len(names) else ""))
    return tuple(found)


def modality_of(header: Header, frame: int, layout: PixelLayout) -> Rescale | LookupTable:
    """What makes modality values of stored ones. Raises Invalid for a table that is none."""
    if header.text(0x00080016) in _X_RAY and header.text(0x00281040):
        return Rescale()  # back to what the detector saw, for measuring, not for showing (PS3.3 C.8.7.1.1.2)
    source = functional_group(header, frame, _TRANSFORMATION) or header
    item = source.item(_MODALITY_LUT)
    if item is not None:
        return LookupTable.of(item, signed=layout.signed)
    slope, intercept = source.number(0x00281053, "DS"), source.number(0x00281052, "DS")
    return Rescale(slope or 1.0, intercept or 0.0)


def functional_group(header: Header, frame: int, tag: int) -> Header | None:
    """The item of a functional group that a frame has for itself, or shares with all (PS3.3 C.7.6.16.1)."""
    for groups, index in ((_PER_FRAME, frame - 1), (_SHARED, 0)):
        item = header.item(groups, index) if groups in header else None
        if item is not None and (found := item.item(tag)) is not None:
            return found
    return None


def stored_values(cells: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Cells to stored values: the bits that are stored, and their sign (PS3.5 §8.1.1)."""
    if layout.floating:
        return cells
    width = cells.dtype.itemsize * 8
    stored = min(layout.bits_stored, width)
    shift = max(0, min(layout.high_bit + 1, width) - stored)
    if width == 64 and stored == 64:
        return cells.view(np.int64) if layout.signed else cells
    values = (cells >> cells.dtype.type(shift)).astype(np.int64) & ((1 << stored) - 1)
    if layout.signed:
        half = 1 << (stored - 1)
        values = (values ^ half) - half
    return np.asarray(values)


def _chosen(
    stored: StoredFrame, modality: Rescale | LookupTable, window: Window | None, preset: int | str
) -> Window | LookupTable | Spread:
    if window is not None and window.function:
        return window
    presets = presets_of(stored.header, stored.frame, stored.layout)
    if window is not None:
        own = next((one.voi.function for one in presets if isinstance(one.voi, Window)), LINEAR)
        fits = window._replace(function=own)
        return fits if fits.valid else window
    if preset:
        for number, one in enumerate(presets, 1):
            if preset in (number, str(number), one.explanation):
                return one.voi
        raise Invalid("This image has no such window.", mend="Ask for one that it names.", code="no-window")
    return presets[0].voi if presets else _spread(stored, modality)


def _inverse(stored: StoredFrame) -> bool:
    """Whether the lowest value is white. INVERSE says of an image what MONOCHROME1 says, not its opposite (C.8.11.3)."""
    return stored.layout.photometric == "MONOCHROME1" or stored.header.text(0x20500020) == "INVERSE"


def _rescaled_below_zero(header: Header, frame: int, layout: PixelLayout) -> bool:
    """Whether modality values may be negative, so that the first value of a VOI LUT is signed (PS3.3 C.11.2.1.1)."""
    modality = modality_of(header, frame, layout)
    return isinstance(modality, Rescale) and (modality.intercept < 0 or modality.slope < 0)


def _spread(stored: StoredFrame, modality: Rescale | LookupTable) -> Spread:
    """What to show where nothing says it: all of 8 bits, as they are meant to be seen; else what the image holds."""
    layout = stored.layout
    if layout.bits_stored <= 8 and modality == Rescale():
        low = -(1 << (layout.bits_stored - 1)) if layout.signed else 0
        return Spread(low, low + (1 << layout.bits_stored) - 1)
    cells = stored.cells.ravel()
    cells = cells[:: -(-cells.size // MAX_SAMPLED)]
    if cells.dtype.itemsize <= 2:
        return _spread_of_counts(np.bincount(cells), stored, modality)
    values = stored_values(cells, layout)
    values = modality.outputs(values[~_padding(values, stored)])
    values = values[np.isfinite(values)]
    if not values.size:
        return Spread(0.0, 1.0)
    low, high = np.quantile(values, SHOWN)
    return Spread(float(low), float(high))


def _spread_of_counts(counts: NDArray[Any], stored: StoredFrame, modality: Rescale | LookupTable) -> Spread:
    cells = np.flatnonzero(counts).astype(stored.cells.dtype)
    values = stored_values(cells, stored.layout)
    kept = ~_padding(values, stored)
    if not kept.any():
        return Spread(0.0, 1.0)
    shown = modality.outputs(values[kept])
    order = np.argsort(shown, kind="stable")
    share = np.cumsum(counts[cells[kept]][order])
    low, high = np.searchsorted(share, np.multiply(SHOWN, share[-1]))
    return Spread(float(shown[order[low]]), float(shown[order[min(high, len(order) - 1)]]))


def _padding(values: NDArray[Any], stored: StoredFrame) -> NDArray[np.bool_]:
    """Which stored values fill what the image does not cover (PS3.3 C.7.5.1.1.2)."""
    header, signed = stored.header, stored.layout.signed
    padding = header.words(_PADDING, signed=signed)
    if not padding or stored.layout.bits_allocated > 16:
        return np.zeros(values.shape, bool)
    limit = header.words(_PADDING_LIMIT, signed=signed) or padding
    low, high = sorted((padding[0], limit[0]))
    return np.asarray((values >= low) & (values <= high))


@lru_cache(maxsize=16)
def _table(transform: Transform, cell_bytes: int, layout: PixelLayout) -> NDArray[np.uint8]:
    """The grey of every value that a cell of 1 or 2 bytes can have."""
    every = np.arange(1 << (8 * cell_bytes), dtype=f"u{cell_bytes}")
    return transform.greys(stored_values(every, layout))
