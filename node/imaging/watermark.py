"""The visible watermark: whose picture, who looked, when and where, burned into every rendered view.

Two-tone text tiled over the picture, readable on dark and on bright, and a solid footer. The tiling is
shifted by a seed (person, opening, frame) so that a constant layer cannot be averaged away. It deters and
traces; it does not prevent, and the stored DICOM is never touched.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.imaging.watermark_text import WatermarkText

STRENGTH = 46
"""Grey levels by which the tiled text differs from what lies under it."""
KEPT_PIXELS = 2 * 1024 * 1024
"""The tiling of larger pictures is made anew each time: it would take much memory to keep."""
SHIFTS = 7
"""So many ways the tiling lies over a picture."""
ANGLE = math.radians(24)
MIN_LETTERS = 10
MARGIN = 4

CJK_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def burn(picture: NDArray[np.uint8], text: WatermarkText) -> NDArray[np.uint8]:
    """Return a copy of `picture` (gray or RGB, uint8) with the mark; at least 14 rows gain a footer below."""
    height, width = picture.shape[:2]
    footer = _footer(width, text.lines)
    marked = np.empty((height + len(footer), *picture.shape[1:]), np.uint8)
    marked[:height] = picture
    marked[height:] = footer if picture.ndim == 2 else footer[..., None]
    tiling = _tiling if width * height <= KEPT_PIXELS else _tiling.__wrapped__
    places, strengths = tiling(width, height, " · ".join(text.lines), text.seed % SHIFTS)
    flat = marked.reshape(-1, *picture.shape[2:])
    under = flat[places]
    by = strengths if picture.ndim == 2 else strengths[:, None]
    # Lighten what is dark and darken what is bright, so that the text is readable on both.
    flat[places] = np.where(under < 128, under + by, under - by)
    return marked


@lru_cache(maxsize=32)
def _tiling(width: int, height: int, text: str, shift: int) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Which pixels of the picture the tiled text touches, row after row, and by how many grey levels."""
    size = max(MIN_LETTERS, width // 42)
    strip = _strip(text, size)
    layer = np.zeros((height, width), np.uint8)
    step_y = max(48, height // 4)
    step_x = int(_font(size, text).getlength(text)) + size * 5
    reach = math.hypot(width, height)
    for row in range(-int(reach / step_y) - 2, int(reach / step_y) + 3):
        down = (row + shift / SHIFTS) * step_y
        for column in range(-int(reach / step_x) - 2, int(reach / step_x) + 3):
            along = column * step_x + row * step_x // 3
            x = width / 2 + along * math.cos(ANGLE) + down * math.sin(ANGLE) - strip.shape[1] / 2
            y = height / 2 - along * math.sin(ANGLE) + down * math.cos(ANGLE) - strip.shape[0] / 2
            _stamp(layer, strip, round(x), round(y))
    flat = layer.ravel()
    places = np.flatnonzero(flat)
    return places, flat[places]


def _stamp(layer: NDArray[np.uint8], strip: NDArray[np.uint8], left: int, top: int) -> None:
    """Lay the strip on the layer where it falls inside."""
    first, last = max(0, top), min(layer.shape[0], top + strip.shape[0])
    start, end = max(0, left), min(layer.shape[1], left + strip.shape[1])
    if first < last and start < end:
        part = layer[first:last, start:end]
        np.maximum(part, strip[first - top : last - top, start - left : end - left], out=part)


@lru_cache(maxsize=8)
def _strip(text: str, size: int) -> NDArray[np.uint8]:
    """The text once, turned, cut close; drawn once for all frames that somebody looks at within a minute."""
    font = _font(size, text)
    image = Image.new("L", (int(font.getlength(text)) + 4, size * 2), 0)
    ImageDraw.Draw(image).text((2, size // 3), text, fill=STRENGTH, font=font)
    turned = image.rotate(math.degrees(ANGLE), resample=Image.Resampling.BILINEAR, expand=True)
    return np.asarray(turned, np.uint8)


@lru_cache(maxsize=64)
def _footer(width: int, lines: tuple[str, ...]) -> NDArray[np.uint8]:
    size = max(MIN_LETTERS - 1, min(18, width // 46))
    shown = _wrap(lines, size, width)
    image = Image.new("L", (width, (size + 5) * len(shown)), 16)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(shown):
        draw.text((MARGIN, number * (size + 5)), line, fill=226, font=_font(size, line))
    return np.asarray(image, np.uint8)


def _wrap(lines: tuple[str, ...], size: int, width: int) -> list[str]:
    """Join the lines while they fit, so that a wide picture has a one-line footer; break those that do not."""
    shown: list[str] = []
    for line in lines:
        joined = f"{shown[-1]}   {line}" if shown else line
        if shown and _fits(joined, size, width):
            shown[-1] = joined
            continue
        while line:
            fitting = next((n for n in range(len(line), 1, -1) if _fits(line[:n], size, width)), 1)
            shown.append(line[:fitting])
            line = line[fitting:]
    return shown


def _fits(line: str, size: int, width: int) -> bool:
    return _font(size, line).getlength(line) <= width - 2 * MARGIN


@lru_cache(maxsize=64)
def _cjk_font(size: int) -> Font | None:
    for path in CJK_FONTS:
        if Path(path).is_file():
            return ImageFont.truetype(path, size)
    return None


@lru_cache(maxsize=64)
def _latin_font(size: int) -> Font:
    return ImageFont.load_default(size)


def _font(size: int, text: str) -> Font:
    # Pillow's own font has no Chinese; without a CJK font such letters show as boxes, the rest stays legible.
    wanted = None if text.isascii() else _cjk_font(size)
    return wanted or _latin_font(size)
