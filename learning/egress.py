"""What may leave a site: the filter between the trainer and the network, applied outside the trainer's process.

A reply is one parameter vector of the declared length and a few numbers of the declared names. Everything else
is withheld. A plan cannot switch this off; a site cannot be asked to.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from consent.errors import Invalid
from learning.networks import Vector

METRICS = frozenset({"loss", "accuracy", "measured", "baseline_accuracy", "seconds"})
"""The only numbers that may leave beside the parameters, with the example count."""

COUNTS = frozenset({"measured"})
COUNT_STEP = 5
"""Example counts leave rounded to this step."""

DECIMALS = 4
MAX_METRIC = 1e9


def filtered_update(update: Vector, reference: Vector, norm_max: float) -> Vector:
    """The update that may leave: as long as `reference`, finite, and at most `norm_max` away from it (L2).

    A longer step is cut to the bound, keeping its direction. Raises Invalid on a wrong type, length or a number
    that is not finite.
    """
    if update.dtype != np.float32 or update.shape != reference.shape:
        raise Invalid("The update does not have the declared shape.", code="update-shape")
    if not np.isfinite(update).all():
        raise Invalid("The update holds numbers that are not finite.", code="update-not-finite")
    step = update.astype(np.float64) - reference
    norm = float(np.linalg.norm(step))
    if norm <= norm_max:
        return update.copy()
    return (reference + step * (norm_max / norm)).astype(np.float32)


def filtered_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers that may leave, rounded. Raises Invalid on a name that is not allowed or a value that is not
    an ordinary number."""
    for name, value in metrics.items():
        if name not in METRICS:
            raise Invalid("The trainer reports something that may not leave.", code="metric-name")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise Invalid("The trainer reports something that is not a number.", code="metric-value")
        if abs(value) > MAX_METRIC:
            raise Invalid("The trainer reports an impossible number.", code="metric-value")
    return {
        name: float(rounded_count(int(value))) if name in COUNTS else round(float(value), DECIMALS)
        for name, value in metrics.items()
    }


def rounded_count(count: int) -> int:
    """How many examples, as others may know it: to the nearest step, at least one step."""
    return max(COUNT_STEP, COUNT_STEP * round(count / COUNT_STEP))
