"""Makes a screenshot fit to be committed: fewer colours, the same pixels.

python -m tests.support.pictures test-output/viewer.png docs/images/portal.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

MAX_BYTES = 350_000
COLOURS = (256, 128, 64, 48)


def compact(source: Path, target: Path) -> int:
    """Write `source` as a PNG with a palette that keeps it under MAX_BYTES; return its size in bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        colours = picture.convert("RGB")
    for count in COLOURS:
        colours.quantize(count, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            break
    return target.stat().st_size


if __name__ == "__main__":
    print(f"{sys.argv[2]}: {compact(Path(sys.argv[1]), Path(sys.argv[2])) / 1000:.0f} kB")
