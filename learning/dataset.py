"""Examples in sealed memory: images, labels and the hold-out flag as arrays, from the daemon to the trainer.

The layout is one JSON header line, padded to 64 bytes, then the three arrays. It never lies in a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consent.errors import AccordError, Corrupt
from learning.plans import MAX_EXAMPLES_PER_SITE, MAX_SIDE_PIXELS
from learning.sealed import map_sealed, seal_bytes

ALIGNMENT_BYTES = 64


class TooFewPatients(AccordError):
    """Fewer patients than the plan's minimum match and consent: the number itself stays at the site."""

    code = "too-few-patients"


@dataclass(frozen=True)
class Examples:
    """`images` (n, rows, columns) float32 in 0..1; `labels` (n,) int64; `held_out` (n,) bool."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)


def seal_examples(examples: Examples) -> int:
    """Write the examples into a sealed memfd; the caller owns the descriptor."""
    count, rows, columns = examples.images.shape
    head = json.dumps({"count": count, "rows": rows, "columns": columns}).encode()
    head += b" " * (-(len(head) + 1) % ALIGNMENT_BYTES) + b"\n"
    arrays = (
        np.ascontiguousarray(examples.images, np.float32),
        np.ascontiguousarray(examples.labels, np.int64),
        np.ascontiguousarray(examples.held_out, np.bool_),
    )
    return seal_bytes("accord-examples", (head, *(array.tobytes() for array in arrays)))


def open_examples(descriptor: int) -> Examples:
    """Map sealed examples without a copy. Raises Corrupt when header and size disagree."""
    mapping = map_sealed(descriptor)
    end = mapping.find(b"\n", 0, 16 * ALIGNMENT_BYTES) + 1
    try:
        head = json.loads(mapping[:end])
        count, rows, columns = int(head["count"]), int(head["rows"]), int(head["columns"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt("The examples have no header.") from error
    size = end + count * (rows * columns * 4 + 8 + 1)
    sides_fit = 0 < rows <= MAX_SIDE_PIXELS and 0 < columns <= MAX_SIDE_PIXELS
    if not 0 < count <= MAX_EXAMPLES_PER_SITE or not sides_fit or size != len(mapping):
        raise Corrupt("The examples' header does not fit their size.")
    view = memoryview(mapping)
    labels_at = end + count * rows * columns * 4
    flags_at = labels_at + count * 8
    return Examples(
        np.frombuffer(view[end:labels_at], np.float32).reshape(count, rows, columns),
        np.frombuffer(view[labels_at:flags_at], np.int64),
        np.frombuffer(view[flags_at:], np.bool_),
    )
