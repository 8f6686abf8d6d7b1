"""What each measurement of ours is held against: the goals of docs/performance.md, as numbers.

A goal looks at a series, and where it is a ratio at a rival's series of the same name. What cannot be judged (the rival is not
installed) is neither met nor missed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from tests.bench.results import OURS, RIVAL, Results, Series

MIB = 2**20
Figure = Callable[[Results, Series], float | None]


@dataclass(frozen=True)
class Goal:
    """`what` is a pattern of the series' whole name; `figure` is what must be at least, or below, `limit`."""

    what: str
    words: str
    figure: Figure
    limit: float
    at_least: bool

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure < self.limit


@dataclass(frozen=True)
class Judged:
    """A goal held against what was measured; `met` is None where it could not be."""

    what: str
    server: str
    goal: str
    figure: float | None
    met: bool | None


def _times(what: str, rival: str, limit: float) -> Goal:
    def figure(results: Results, series: Series) -> float | None:
        beside = results.beside(series, rival)
        return None if beside is None else series.times_as_good_as(beside)

    return Goal(what, f"≥ {limit:g} × {rival}", figure, limit, at_least=True)


def _median_below(what: str, limit: float, unit: str) -> Goal:
    return Goal(what, f"< {limit:g} {unit}", lambda _, one: median(one.values), limit, at_least=False)


def _p95_below(what: str, limit: float) -> Goal:
    return Goal(what, f"p95 < {limit:g} ms", lambda _, one: one.percentile(95), limit, at_least=False)


def _peak_below(what: str, limit: float) -> Goal:
    return Goal(
        what, f"peak < {limit:g} MiB", lambda _, one: one.peak_bytes / MIB or None, limit, at_least=False
    )


def _cpu_below(what: str, limit: float) -> Goal:
    def figure(_: Results, series: Series) -> float | None:
        return median(series.cpu_seconds) if any(series.cpu_seconds) else None

    return Goal(what, f"< {limit:g} CPU s per 100 MB", figure, limit, at_least=False)


def _rewrapped(_: Results, series: Series) -> float:
    """Seconds for a million keys, from those that were measured."""
    count = int(series.what.split()[1].replace(",", ""))
    return median(series.values) * 1e6 / count


ONE_ANSWER = r"QIDO (StudyInstanceUID|PatientID|AccessionNumber|series of a study), [\d,]+ studies"
GOALS = (
    _times(r"C-STORE( mutual TLS)?, \d associations?", RIVAL, 2.5),
    _times(r"C-STORE, 4 associations", "storescp", 1.0),
    _cpu_below(r"(C-STORE( mutual TLS)?, \d associations?|STOW-RS, .*)", 0.3),
    _times(r"STOW-RS, .*", RIVAL, 4.0),
    _peak_below(r"STOW-RS, .*", 150.0),
    _times(r"WADO-RS study, \d clients?", RIVAL, 1.0),
    _median_below(r"series metadata", 5.0, "ms"),
    _median_below(ONE_ANSWER, 3.0, "ms"),
    _p95_below(ONE_ANSWER, 10.0),
    _median_below(r"QIDO .*, 100 answers, [\d,]+ studies", 10.0, "ms"),
    Goal(
        r"ingest at [\d,]+ ÷ at [\d,]+ studies, (C-STORE|new studies)",
        "≥ 0.9",
        lambda _, one: median(one.values),
        0.9,
        at_least=True,
    ),
    _median_below(r"rendered jpeg", 10.0, "ms"),
    _p95_below(r"while four associations ingest: frame at the portal .*", 300.0),
    _p95_below(r"while four associations ingest: QIDO .*", 50.0),
    _median_below(r"resident memory, idle", 120.0, "MiB"),
    _median_below(r"resident memory, after (everything|the work with [\d,]+ studies)", 400.0, "MiB"),
    Goal(r"rewrap [\d,]+ study keys", "≤ 90 s a million", _rewrapped, 90.0, at_least=False),
)


def judged(results: Results, series: Series) -> list[Judged]:
    """Every goal that a series of ours is held against."""
    if not series.server.startswith(OURS):
        return []
    found = []
    for goal in GOALS:
        if re.fullmatch(goal.what, series.what):
            figure = goal.figure(results, series)
            met = None if figure is None else goal.met(figure)
            found.append(Judged(series.what, series.server, goal.words, figure, met))
    return found
