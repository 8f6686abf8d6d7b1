"""Measurements, their medians, and how many times as good as Orthanc they are, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

RIVAL = "Orthanc"
OURS = "Accord"


@dataclass
class Series:
    """One thing measured at one server. `values` stand in the order of the runs, so that runs can be compared pairwise.

    `unit` is MB/s (more is better) or ms (less is better). CPU seconds are per 100 MB, or per request when `unit` is ms.
    """

    what: str
    server: str
    unit: str
    values: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    note: str = ""

    def percentile(self, percent: float) -> float:
        """Nearest-rank percentile of the values."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]

    def times_as_good_as(self, rival: Series) -> float:
        """Throughput: the median of the ratios run by run. Latency: the ratio of the medians."""
        if self.unit == "ms":
            return median(rival.values) / median(self.values)
        pairs = zip(self.values, rival.values, strict=False)
        return median(mine / theirs for mine, theirs in pairs)


class Results:
    """Everything measured in one run of the benchmark."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def add(
        self,
        what: str,
        server: str,
        unit: str,
        value: float,
        *,
        cpu_seconds: float = 0.0,
        peak_bytes: int = 0,
    ) -> None:
        """Put one measurement on record."""
        series = self._series.setdefault((what, server), Series(what, server, unit))
        series.values.append(value)
        series.cpu_seconds.append(cpu_seconds)
        series.peak_bytes = max(series.peak_bytes, peak_bytes)

    def rival_of(self, series: Series) -> Series | None:
        """Orthanc doing the same."""
        return next(
            (
                one
                for one in self._series.values()
                if one.what == series.what and one.server.startswith(RIVAL)
            ),
            None,
        )

    def table(self) -> str:
        """Markdown, one row a measurement."""
        lines = [
            "| what | server | unit | median | min | max | p95 | × Orthanc | CPU s per 100 MB | peak RSS MiB |",
            "|" + " --- |" * 10,
        ]
        lines += [self._row(series) for series in self._series.values()]
        return "\n".join(lines)

    def document(self) -> list[dict[str, Any]]:
        """The same for programs, with every single value."""
        return [
            {
                "what": one.what,
                "server": one.server,
                "unit": one.unit,
                "median": median(one.values),
                "values": one.values,
                "times_orthanc": self._ratio(one),
                "cpu_seconds": median(one.cpu_seconds),
                "peak_bytes": one.peak_bytes,
            }
            for one in self._series.values()
        ]

    def _ratio(self, series: Series) -> float | None:
        rival = self.rival_of(series)
        return None if rival is None else series.times_as_good_as(rival)

    def _row(self, one: Series) -> str:
        ratio = self._ratio(one) if one.server.startswith(OURS) else None
        cells: Sequence[str] = (
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
        )
        return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
