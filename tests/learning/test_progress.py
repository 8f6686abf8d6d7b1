"""What a researcher sees of a run, computed from the sites' reports."""

from __future__ import annotations

import warnings

import pytest

from learning.plots import PlotWords, draw
from learning.progress import Progress, SiteReport, progress_of
from learning.wording import EVALUATE, TRAIN, VOID

WORDS = PlotWords("Round", "Accuracy", "Federated", "alone", "Nothing yet")


def trained(number: int, site: str, accuracy: float, measured: float = 10, loss: float = 1.0) -> SiteReport:
    return SiteReport(
        number, TRAIN, site, "trained", "", 20, {"accuracy": accuracy, "measured": measured, "loss": loss}
    )


def measured(site: str, accuracy: float, alone: float) -> SiteReport:
    metrics = {"accuracy": accuracy, "measured": 10.0, "baseline_accuracy": alone}
    return SiteReport(2, EVALUATE, site, "measured", "", 20, metrics)


FULL = progress_of(
    [
        trained(1, "a", 0.1),
        trained(1, "b", 0.3, measured=30),
        SiteReport(1, TRAIN, "c", "refused", "This site has not approved the plan."),
        trained(2, "a", 0.5),
        trained(2, "b", 0.7),
        SiteReport(2, TRAIN, "c", "refused", "This site refused the plan."),
        measured("a", 0.9, 0.4),
        measured("b", 0.8, 0.6),
    ]
)


@pytest.mark.requirement("R1")
def test_accuracy_belongs_to_the_round_before_its_report() -> None:
    """Round 1's reports measure the untrained model, the final evaluation measures the last."""
    assert FULL.curve == (
        (0, pytest.approx(0.25)),
        (1, pytest.approx(0.6)),
        (2, pytest.approx(0.85)),
    )
    assert FULL.accuracy == pytest.approx(0.85)
    assert (FULL.final, FULL.baseline) == ({"a": 0.9, "b": 0.8}, {"a": 0.4, "b": 0.6})


def test_the_latest_refusal_of_a_site_is_shown() -> None:
    """One line per site, its last words; who trained later is no longer listed."""
    assert FULL.refusals == {"c": "This site refused the plan."}
    joined = progress_of([SiteReport(1, TRAIN, "a", "refused", "no"), trained(2, "a", 0.5)])
    assert joined.refusals == {}
    assert progress_of([SiteReport(1, VOID, "a", "refused", "no")]).refusals == {"a": "no"}


def test_an_empty_run_shows_nothing() -> None:
    """Before the first round there is no curve and no number."""
    empty = progress_of([])
    assert (empty.curve, empty.accuracy, empty.rounds) == ((), None, ())


@pytest.mark.requirement("R1", "F6")
@pytest.mark.parametrize("progress", [FULL, progress_of([]), progress_of([trained(1, "a", 0.1)])])
def test_a_plot_is_drawn_at_any_time(progress: Progress) -> None:
    """SVG before, during and after; the same run gives the same bytes."""
    first = draw(progress, 2, WORDS)
    assert first == draw(progress, 2, WORDS)
    assert b"<svg" in first
    assert b"<script" not in first


def test_chinese_words_are_drawn_without_complaint() -> None:
    """The reader's fonts draw the text, so a font that lacks the glyphs here is no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw(FULL, 2, PlotWords("轮次", "准确率", "联邦", "单独", "尚无结果"))
    assert "准确率".encode() in picture
