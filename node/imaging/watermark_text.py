"""What a watermark says. How it is burned in is `watermark`'s, which needs NumPy and runs in a worker."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINES = 6
MAX_LINE_CHARACTERS = 120


@dataclass(frozen=True)
class WatermarkText:
    """What to write: a few short lines, and a seed that varies where."""

    lines: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        cut = tuple(line[:MAX_LINE_CHARACTERS] for line in self.lines[:MAX_LINES])
        object.__setattr__(self, "lines", cut)
