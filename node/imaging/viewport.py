"""The part of a picture that is asked for, and the size to see it at (PS3.18 §8.3.5.1.3)."""

from __future__ import annotations

from typing import NamedTuple, Self

from consent.errors import Invalid

MAX_SIDE = 65_535


class Viewport(NamedTuple):
    """`region` is left, top, width and height in the picture's own pixels; None is all of it. Negative sizes mirror."""

    width: int
    height: int
    region: tuple[int, int, int, int] | None = None

    @classmethod
    def of(cls, width: int, height: int, region: tuple[int, int, int, int] | None = None) -> Self:
        """A viewport that somebody asked for. Raises Invalid when it has no size."""
        left, top, across, down = region or (0, 0, 1, 1)
        sizes = (width, height, abs(across), abs(down))
        if (
            not all(0 < side <= MAX_SIDE for side in sizes)
            or not 0 <= min(left, top) <= max(left, top) <= MAX_SIDE
        ):
            raise Invalid(
                "This viewport has no size.",
                mend="Give a width and a height, and a region inside the picture.",
                code="viewport",
            )
        return cls(width, height, region)
