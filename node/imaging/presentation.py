"""The softcopy presentation pipeline: stored values to what a display shows (PS3.4 N.2).

Modality LUT or rescale → VOI LUT or window → presentation shape, for grayscale; palette and YBR to RGB for
colour; overlays drawn last. Pure array work: (rows, columns) or (rows, columns, 3) in, uint8 out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from node.imaging.decode import StoredFrame

Window = tuple[float, float]
"""Centre and width in modality units (for CT: Hounsfield units)."""

OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
MAX_OVERLAYS = 16


def present(stored: StoredFrame, window: Window | None = None) -> NDArray[np.uint8]:
    """Return the picture: uint8, (rows, columns) for grayscale or (rows, columns, 3) for RGB.

    `window` overrides the data set's own window and VOI LUT; colour images ignore it.
    """
    pixels, dataset = stored.pixels, stored.dataset
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        picture = _to_bytes(apply_color_lut(pixels, dataset), 16 if _palette_bits(dataset) > 8 else 8)
    elif pixels.ndim == 3:
        picture = _to_bytes(pixels, int(dataset.get("BitsStored", 8) or 8))
    else:
        picture = _grayscale(pixels, dataset, window, photometric)
    return _draw_overlays(picture, stored)


def own_window(dataset: Dataset) -> Window | None:
    """The first window the data set names, or None."""
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    return (centre, width) if centre is not None and width is not None and width >= 1 else None


def _grayscale(
    pixels: NDArray[Any], dataset: Dataset, window: Window | None, photometric: str
) -> NDArray[np.uint8]:
    values = _modality_values(pixels, dataset)
    if window is None and dataset.get("VOILUTSequence"):
        shown = np.asarray(apply_voi_lut(pixels, dataset, prefer_lut=True), np.float32)
        low, high = float(shown.min()), float(shown.max())
        picture = _stretch(shown, low, high)
    else:
        picture = _stretch(values, *_limits(values, dataset, window))
    inverse = (photometric == "MONOCHROME1") != (dataset.get("PresentationLUTShape") == "INVERSE")
    return 255 - picture if inverse else picture


def _modality_values(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.float32]:
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(pixels, dataset), np.float32)
    slope, intercept = _first(dataset.get("RescaleSlope")), _first(dataset.get("RescaleIntercept"))
    values = pixels.astype(np.float32)
    if slope not in (None, 0.0, 1.0):
        values *= slope
    if intercept:
        values += intercept
    return values


def _limits(values: NDArray[np.float32], dataset: Dataset, window: Window | None) -> tuple[float, float]:
    """Lowest and highest value shown. PS3.3 C.11.2.1.2: the linear function is off by half a unit."""
    window = window or own_window(dataset)
    if window is not None:
        centre, width = window
        exact = str(dataset.get("VOILUTFunction", "LINEAR")) == "LINEAR_EXACT" or width <= 1
        if exact:
            return centre - width / 2, centre + width / 2
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, (0.5, 99.5))
    return float(low), float(high)


def _stretch(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    scale = 255.0 / max(high - low, 1e-6)
    shifted = np.nan_to_num((values - np.float32(low)) * np.float32(scale), nan=0.0)
    return np.asarray(np.clip(shifted + 0.5, 0, 255), np.uint8)


def _to_bytes(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if bits <= 8:
        return np.asarray(pixels, np.uint8)
    return np.asarray(pixels >> (bits - 8), np.uint8)


def _palette_bits(dataset: Dataset) -> int:
    descriptor = dataset.get("RedPaletteColorLookupTableDescriptor")
    return int(descriptor[2]) if descriptor else 8


def _draw_overlays(picture: NDArray[np.uint8], stored: StoredFrame) -> NDArray[np.uint8]:
    for group in list(OVERLAY_GROUPS)[:MAX_OVERLAYS]:
        if (group, 0x3000) not in stored.dataset:
            continue
        try:
            overlay = np.atleast_2d(stored.dataset.overlay_array(group))
        except (AttributeError, ValueError, TypeError):
            continue  # a broken overlay must not hide the picture
        if overlay.ndim == 3:
            overlay = overlay[min(stored.frame - 1, len(overlay) - 1)]
        if overlay.shape == picture.shape[:2]:
            picture = np.where((overlay > 0)[..., None] if picture.ndim == 3 else overlay > 0, 255, picture)
    return np.asarray(picture, np.uint8)


def _first(value: Any) -> float | None:
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if value else None
    try:
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None
