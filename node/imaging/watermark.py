"""The visible watermark: whose picture, who looked, when and where, burned into every rendered view.

Two-tone text tiled over the picture, readable on dark and on bright, and a solid footer. The tiling is
shifted by a seed (person, opening, frame) so that a constant layer cannot be averaged away. It deters and
traces; it does not prevent, and the stored DICOM is never touched.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.imaging.watermark_text import WatermarkText

STRENGTH = 46
"""Grey levels by which the tiled text differs from what lies under it."""

CJK_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def burn(picture: NDArray[np.uint8], text: WatermarkText) -> NDArray[np.uint8]:
    """Return a copy of `picture` (gray or RGB, uint8) with the mark; at least 24 rows gain a footer below."""
    height, width = picture.shape[:2]
    layer = _tile(width, height, " · ".join(text.lines), text.seed % 7)
    if picture.ndim == 3:
        layer = layer[..., None]
    # Lighten what is dark and darken what is bright, so that the text is readable on both.
    marked = np.where(picture < 128, picture + layer, picture - layer).astype(np.uint8)
    return np.concatenate((marked, _footer(width, text.lines, picture.ndim == 3)), axis=0)


@lru_cache(maxsize=32)
def _tile(width: int, height: int, text: str, shift: int) -> NDArray[np.uint8]:
    size = max(10, width // 42)
    font = _font(size, text)
    side = int((width**2 + height**2) ** 0.5) + 2
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    step_y = max(48, height // 4)
    step_x = int(draw.textlength(text, font=font)) + size * 5
    for row, y in enumerate(range(shift * step_y // 7, side, step_y)):
        for x in range(-(row * step_x // 3) % step_x - step_x, side, step_x):
            draw.text((x, y), text, fill=STRENGTH, font=font)
    turned = image.rotate(24, resample=Image.Resampling.BILINEAR)
    left, top = (side - width) // 2, (side - height) // 2
    return np.asarray(turned.crop((left, top, left + width, top + height)), np.uint8)


@lru_cache(maxsize=64)
def _footer(width: int, lines: tuple[str, ...], colour: bool) -> NDArray[np.uint8]:
    size = max(9, min(18, width // 46))
    shown = _wrap(lines, size, width)
    image = Image.new("L", (width, (size + 5) * len(shown) + 6), 16)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(shown):
        draw.text((6, 3 + number * (size + 5)), line, fill=226, font=_font(size, line))
    strip = np.asarray(image, np.uint8)
    return np.repeat(strip[..., None], 3, axis=2) if colour else strip


def _wrap(lines: tuple[str, ...], size: int, width: int) -> list[str]:
    """Join the lines while they fit, so that a wide picture has a one-line footer."""
    shown: list[str] = []
    for line in lines:
        joined = f"{shown[-1]}   {line}" if shown else line
        if shown and _font(size, joined).getlength(joined) <= width - 12:
            shown[-1] = joined
        else:
            shown.append(line)
    return shown


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
