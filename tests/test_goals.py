"""The benchmark's judge: a figure is held against the goal of its row, and one that cannot be judged is not called met."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.bench.goals import judged
from tests.bench.mixed import FRAME, SEARCH
from tests.bench.report import table, verdict
from tests.bench.results import Results

pytestmark = pytest.mark.requirement("F1")


def _results(what: str, unit: str, **servers: Sequence[float]) -> Results:
    results = Results()
    for server, values in servers.items():
        for value in values:
            results.add(what, server, unit, value)
    return results


def test_throughput_is_compared_run_by_run_and_not_by_medians() -> None:
    """Two runs of three reach the goal, whatever the medians say."""
    results = _results("STOW-RS, 1 request", "MB/s", Accord=(40, 500, 900), Orthanc=(10, 200, 200))
    (goal,) = [one for one in judged(results, results.all()[0]) if "Orthanc" in one.goal]
    assert (goal.figure, goal.met) == (4.0, True)


def test_without_a_rival_a_ratio_is_neither_met_nor_missed() -> None:
    """Where Orthanc is not installed nothing is claimed."""
    results = _results("WADO-RS study, 1 client", "MB/s", Accord=(900,))
    (goal,) = judged(results, results.all()[0])
    assert (goal.figure, goal.met) == (None, None)
    assert "0 goals met, 0 missed, 1 not judged" in verdict(results)


def test_p95_and_median_are_held_against_goals_of_their_own() -> None:
    """A fast median does not hide a slow tail."""
    results = _results("QIDO PatientID, 100,000 studies", "ms", Accord=(2.0,) * 18 + (40.0,) * 2)
    assert [one.met for one in judged(results, results.all()[0])] == [True, False]
    assert "yes (2.00); no (40.0)" in table(results)


def test_rivals_are_held_against_nothing() -> None:
    """The goals are ours alone."""
    results = _results("series metadata", "ms", Orthanc=(44.0,))
    assert judged(results, results.all()[0]) == []


@pytest.mark.parametrize(
    "what",
    [SEARCH, FRAME, "rendered jpeg", "rewrap 5,000 study keys", "ingest at 100,000 ÷ at 1,000 studies, C-STORE",
     "resident memory, idle", "resident memory, after everything", "QIDO StudyDate range, 100 answers, 2,000 studies",
     "C-STORE mutual TLS, 4 associations", "C-STORE, 1 association"],
)  # fmt: skip
def test_every_row_with_a_goal_is_judged(what: str) -> None:
    """A row that is named differently than its goal would never be held against it."""
    results = _results(what, "ms", Accord=(1.0,))
    assert judged(results, results.all()[0])
