"""Measurements, their medians and percentiles, and how many times as good as another server they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

RIVAL = "Orthanc"
OURS = "Accord"
LESS_IS_BETTER = ("ms", "s", "MiB")


@dataclass
class Series:
    """One thing measured at one server. `values` stand in the order of the runs, so that runs can be compared pairwise.

    Of ms, s and MiB less is better, of MB/s, studies/s and × more. CPU seconds are per 100 MB where the unit is MB/s, per study
    where it is studies/s, else in all.
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
        if self.unit in LESS_IS_BETTER:
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

    def all(self) -> list[Series]:
        """Every series, in the order in which they were first measured."""
        return list(self._series.values())

    def beside(self, series: Series, server: str) -> Series | None:
        """A rival doing the same, whatever its web speaks."""
        return next(
            (
                one
                for one in self.all()
                if one.what == series.what and one.server.partition(" (")[0] == server
            ),
            None,
        )
