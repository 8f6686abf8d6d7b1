"""The softcopy presentation pipeline: stored values to what a display shows (PS3.4 N.2).

Grey or colour, then overlays. Pure array work: (rows, columns) or (rows, columns, 3) in, uint8 out. Leaves the grey
pipeline to `grayscale`, palettes and YBR to `colour`, bitmaps to `overlays`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.imaging.colour import coloured_above_grey, draw_colour
from node.imaging.decode import StoredFrame
from node.imaging.grayscale import draw_grey
from node.imaging.layout import GRAYSCALE
from node.imaging.overlays import draw_overlays
from node.imaging.window import Window


def present(
    stored: StoredFrame, window: Window | None = None, preset: int | str = "", *, overlays: bool = True
) -> NDArray[np.uint8]:
    """Return the picture: uint8, (rows, columns) for grayscale or (rows, columns, 3) for RGB.

    `window` goes before `preset` (number from 1, or name), and both before what the data set says first; colour images
    have neither. Raises Invalid.
    """
    if stored.layout.photometric in GRAYSCALE:
        picture = coloured_above_grey(draw_grey(stored, window, preset), stored)
    else:
        picture = draw_colour(stored)
    return draw_overlays(picture, stored) if overlays else picture
