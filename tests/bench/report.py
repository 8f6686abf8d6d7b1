"""What was measured as a Markdown table, the goal beside each figure, and as a document with every single value."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from tests.bench.goals import Judged, judged
from tests.bench.results import OURS, RIVAL, Results, Series

HEAD = (
    "what", "server", "unit", "median", "min", "max", "p95", "× Orthanc", "CPU s per 100 MB", "peak RSS MiB", "goal", "met",
)  # fmt: skip


def table(results: Results) -> str:
    """Markdown, one row a measurement."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    lines += [f"| {' | '.join(_cells(results, one))} |" for one in results.all()]
    return "\n".join(lines)


def verdict(results: Results) -> str:
    """How many goals are met, and which are missed by how much."""
    found = [one for series in results.all() for one in judged(results, series)]
    missed = [one for one in found if one.met is False]
    unknown = sum(1 for one in found if one.met is None)
    lines = [f"{sum(1 for one in found if one.met)} goals met, {len(missed)} missed, {unknown} not judged."]
    lines += [f"- missed: {one.what} ({one.server}): {one.goal}, is {_figure(one)}" for one in missed]
    return "\n".join(lines)


def document(results: Results) -> list[dict[str, Any]]:
    """The same for programs, with every single value."""
    return [
        {
            "what": one.what,
            "server": one.server,
            "unit": one.unit,
            "median": median(one.values),
            "p95": one.percentile(95),
            "values": one.values,
            "times_orthanc": _ratio(results, one),
            "cpu_seconds": one.cpu_seconds,
            "peak_bytes": one.peak_bytes,
            "goals": [
                {"goal": goal.goal, "figure": goal.figure, "met": goal.met} for goal in judged(results, one)
            ],
        }
        for one in results.all()
    ]


def _cells(results: Results, one: Series) -> Sequence[str]:
    ratio = _ratio(results, one) if one.server.startswith(OURS) else None
    goals = judged(results, one)
    return (
        one.what,
        one.server,
        one.unit,
        _short(median(one.values)),
        _short(min(one.values)),
        _short(max(one.values)),
        _short(one.percentile(95)) if one.unit == "ms" else "",
        "" if ratio is None else f"{ratio:.1f}",
        f"{median(one.cpu_seconds):.2f}" if one.unit == "MB/s" and any(one.cpu_seconds) else "",
        f"{one.peak_bytes / 2**20:.0f}" if one.peak_bytes else "",
        "; ".join(goal.goal for goal in goals),
        "; ".join(_met(goal) for goal in goals),
    )


def _met(goal: Judged) -> str:
    if goal.met is None:
        return "not judged"
    return f"{'yes' if goal.met else 'no'} ({_figure(goal)})"


def _figure(goal: Judged) -> str:
    return "" if goal.figure is None else _short(goal.figure)


def _ratio(results: Results, series: Series) -> float | None:
    rival = results.beside(series, RIVAL)
    return None if rival is None else series.times_as_good_as(rival)


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
