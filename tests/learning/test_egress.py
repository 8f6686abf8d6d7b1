"""What may leave a site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import Invalid
from learning.egress import COUNT_STEP, METRICS, filtered_metrics, filtered_update, rounded_count

REFERENCE = np.linspace(-1, 1, 50, dtype=np.float32)


@pytest.mark.requirement("R2", "R4")
@pytest.mark.parametrize(
    "update",
    [
        pytest.param(REFERENCE[:-1], id="too short"),
        pytest.param(np.append(REFERENCE, np.float32(0)), id="too long"),
        pytest.param(REFERENCE.astype(np.float64), id="another type"),
        pytest.param(REFERENCE.reshape(5, 10), id="another shape"),
        pytest.param(np.where(np.arange(50) == 7, np.nan, REFERENCE).astype(np.float32), id="nan"),
        pytest.param(np.where(np.arange(50) == 7, np.inf, REFERENCE).astype(np.float32), id="inf"),
    ],
)
def test_garbage_does_not_leave(update: Any) -> None:
    """Wrong length, type, shape or a number that is not finite is withheld."""
    with pytest.raises(Invalid):
        filtered_update(update, REFERENCE, 10)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=50, max_size=50),
    st.floats(1e-2, 1e3),
)
def test_no_step_is_longer_than_the_bound(values: list[float], bound: float) -> None:
    """Whatever comes back, what leaves lies within the plan's norm of what came in."""
    left = filtered_update(np.array(values, np.float32), REFERENCE, bound)
    step = np.linalg.norm(left.astype(np.float64) - REFERENCE)
    assert step <= bound * 1.001 + 1e-3


def test_a_short_step_leaves_as_it_is() -> None:
    """Within the bound nothing is changed, and the caller's array is not shared."""
    update = REFERENCE + np.float32(0.01)
    left = filtered_update(update, REFERENCE, 10)
    assert np.array_equal(left, update)
    assert left is not update


@pytest.mark.requirement("R2")
@pytest.mark.parametrize(
    "metrics",
    [
        {"patients": 3},
        {"loss": "Zhang Wei"},
        {"loss": [1, 2]},
        {"loss": float("nan")},
        {"loss": 1e30},
        {"loss": True},
        {"accuracy": None},
    ],
    ids=str,
)
def test_only_the_allowed_numbers_leave(metrics: dict[str, Any]) -> None:
    """Another name, a text, a list, a flag, an impossible number: withheld."""
    with pytest.raises(Invalid):
        filtered_metrics(metrics)


def test_numbers_leave_rounded() -> None:
    """Fractions to four places, counts to fives, so that no exact number of patients is told."""
    assert filtered_metrics({"loss": 0.123456789, "measured": 38.0}) == {"loss": 0.1235, "measured": 40.0}
    assert [rounded_count(count) for count in (1, 7, 8, 12, 103)] == [5, 5, 10, 10, 105]
    assert all(rounded_count(count) % COUNT_STEP == 0 for count in range(200))
    assert "patients" not in METRICS
