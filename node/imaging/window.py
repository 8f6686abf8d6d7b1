"""Windows: which values a display spreads from black to white (PS3.3 C.11.2.1.2).

Holds `Window` and what makes one valid. Leaves the arithmetic and which window is meant to `grayscale`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

from consent.errors import Invalid, Sentence

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
FUNCTIONS = (LINEAR, LINEAR_EXACT, SIGMOID)
MAX_MAGNITUDE = 1e12


class Window(NamedTuple):
    """Centre and width in modality units (for CT: Hounsfield units); no function means the data set's own."""

    centre: float
    width: float
    function: str = ""

    @classmethod
    def of(cls, centre: float, width: float, function: str = "") -> Self:
        """A window that somebody asked for. Raises Invalid when it is none."""
        window = cls(centre, width, function.upper().replace("-", "_"))
        if not window.valid:
            raise Invalid(
                "This window cannot be drawn.",
                mend=Sentence(
                    "Give a centre, a width of at least 1 (for %(linear)s) and one of %(functions)s.",
                    linear=LINEAR,
                    functions=", ".join(FUNCTIONS),
                ),
                code="window",
            )
        return window

    @property
    def valid(self) -> bool:
        """Whether the standard gives the numbers a meaning."""
        if not math.isfinite(self.centre) or not math.isfinite(self.width):
            return False
        if max(abs(self.centre), self.width) > MAX_MAGNITUDE or self.function not in ("", *FUNCTIONS):
            return False
        return self.width >= 1 if self.function in ("", LINEAR) else self.width > 0
