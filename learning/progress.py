"""What a run has reached, computed from what its sites reported: the table and the curve a researcher follows.

Pure. A site measures the model that it receives before it trains on it, so round r's reports say how good the
model was *after round r-1*; the final evaluation says it for the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from learning.wording import EVALUATE, TRAIN, VOID


@dataclass(frozen=True)
class SiteReport:
    """One site's row of one round. `state`: trained, measured, refused, failed or silent."""

    round: int
    kind: str
    site: str
    state: str
    words: str = ""
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def useful(self) -> bool:
        """Whether the site took part."""
        return self.state in ("trained", "measured")


@dataclass(frozen=True)
class RoundView:
    """One round as shown: `accuracy` is that of the model after it, None until it was measured."""

    round: int
    sites: tuple[SiteReport, ...]
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Progress:
    """The whole run: `start` is the accuracy before any training; `final` and `baseline` per site come at the end.

    `void` is what the sites said in the round that had too few of them.
    """

    rounds: tuple[RoundView, ...]
    start: float | None
    final: Mapping[str, float]
    baseline: Mapping[str, float]
    void: tuple[SiteReport, ...] = ()

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """Points (round, accuracy), round 0 being the untrained model."""
        points = [(0, self.start)] + [(view.round, view.accuracy) for view in self.rounds]
        return tuple((number, value) for number, value in points if value is not None)

    @property
    def accuracy(self) -> float | None:
        """The latest measured accuracy."""
        return self.curve[-1][1] if self.curve else None

    @property
    def refusals(self) -> dict[str, str]:
        """Sites that last said no, with their words."""
        latest = {report.site: report for view in self.rounds for report in view.sites}
        latest |= {report.site: report for report in self.void}
        return {site: report.words for site, report in latest.items() if report.state == "refused"}


def progress_of(reports: Iterable[SiteReport]) -> Progress:
    """Put the reports of one run together."""
    trained: dict[int, list[SiteReport]] = {}
    final: list[SiteReport] = []
    void: list[SiteReport] = []
    for report in reports:
        if report.kind == TRAIN:
            trained.setdefault(report.round, []).append(report)
        elif report.kind == EVALUATE:
            final.append(report)
        elif report.kind == VOID:
            void.append(report)
    views = []
    for number in sorted(trained):
        after = trained.get(number + 1) or (final if number == max(trained) else [])
        views.append(
            RoundView(
                number,
                tuple(sorted(trained[number], key=lambda report: report.site)),
                _mean(trained[number], "loss", "examples"),
                _mean(after, "accuracy", "measured"),
            )
        )
    return Progress(
        tuple(views),
        _mean(trained.get(1, []), "accuracy", "measured"),
        _per_site(final, "accuracy"),
        _per_site(final, "baseline_accuracy"),
        tuple(void),
    )


def _mean(reports: Iterable[SiteReport], name: str, weight: str) -> float | None:
    pairs = [
        (report.metrics[name], report.examples if weight == "examples" else report.metrics.get(weight, 0.0))
        for report in reports
        if report.useful and name in report.metrics
    ]
    total = sum(count for _, count in pairs)
    return sum(value * count for value, count in pairs) / total if total else None


def _per_site(reports: Iterable[SiteReport], name: str) -> dict[str, float]:
    return {
        report.site: report.metrics[name] for report in reports if report.useful and name in report.metrics
    }
