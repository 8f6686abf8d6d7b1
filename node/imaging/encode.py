"""Pictures to files: cut to a region, scaled, written as JPEG, PNG or WebP (PS3.18 §8.3.5.1).

(rows, columns) or (rows, columns, 3) of uint8 goes in. The options are those that are quick: a picture is looked at
once, so that a smaller file is not worth a longer wait.
"""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consent.errors import Invalid
from node.imaging.viewport import Viewport

MAX_OUTPUT_SIDE = 4096
JPEG_QUALITY = 90
WEBP_QUALITY = 88
PNG_LEVEL = 1

Picture = NDArray[np.uint8]


def fitted(picture: Picture, size: int | None = None, viewport: Viewport | None = None) -> Picture:
    """The picture with its longer side at most `size` pixels, or its region at the size of a viewport.

    Shape is kept; `size` never enlarges, a viewport does. Raises Invalid when the region lies outside.
    """
    limit = min(size or MAX_OUTPUT_SIDE, MAX_OUTPUT_SIDE)
    if viewport is not None:
        picture = _region(picture, viewport)
    height, width = picture.shape[:2]
    ratio = limit / max(height, width)
    if viewport is not None:
        ratio = min(ratio, viewport.width / width, viewport.height / height)
    elif ratio >= 1:
        return picture
    return scaled(picture, ratio)


def scaled(picture: Picture, ratio: float) -> Picture:
    """The picture `ratio` times as large."""
    height, width = picture.shape[:2]
    target = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    if target == (width, height):
        return picture
    method = Image.Resampling.BILINEAR if ratio < 1 else Image.Resampling.BICUBIC
    whole = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(whole.resize(target, method, reducing_gap=2.0), np.uint8)


def encoded(picture: Picture, media_type: str, quality: int | None = None) -> bytes:
    """The picture as a file. `quality` (1 to 100) is for JPEG and WebP."""
    if media_type == "image/png":
        kinds = imagecodecs.PNG
        # One filter for all rows, and no search for a better one: half the time, a few per cent more bytes.
        return bytes(
            imagecodecs.png_encode(np.ascontiguousarray(picture), level=PNG_LEVEL, filter=kinds.FILTER.SUB)
        )
    if media_type == "image/jpeg":
        return _by_pillow(picture, "JPEG", quality=quality or JPEG_QUALITY, subsampling=0)
    return _by_pillow(picture, "WEBP", quality=quality or WEBP_QUALITY, method=0)


def _region(picture: Picture, viewport: Viewport) -> Picture:
    if viewport.region is None:
        return picture
    left, top, width, height = viewport.region
    found = picture[top : top + abs(height), left : left + abs(width)]
    if not found.size:
        raise Invalid("The region that was asked for lies outside the picture.", code="viewport")
    # A negative size turns the region round (PS3.18 §8.3.5.1.3).
    return found[:: -1 if height < 0 else 1, :: -1 if width < 0 else 1]


def _by_pillow(picture: Picture, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, form, **options)
    return buffer.getvalue()
