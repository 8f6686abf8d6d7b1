"""A run as a picture: accuracy by round, and federated against every site alone. SVG by matplotlib, drawn at the node.

Words are arguments, already translated; text stays text in the SVG, so the reader's own fonts draw it.
Blocking: call it in a thread.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from learning.progress import Progress

FEDERATED, ALONE, GRID, INK = "#0b6e8a", "#c8862a", "#d9e1e8", "#33475b"
SIZE_INCHES = (10.2, 3.6)
_drawing = threading.Lock()


@dataclass(frozen=True)
class PlotWords:
    """The words in the picture."""

    round: str
    accuracy: str
    federated: str
    alone: str
    waiting: str


def draw(progress: Progress, rounds: int, words: PlotWords) -> bytes:
    """The SVG. Left: the curve so far over `rounds` rounds; right: bars per site once they were measured."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasSVG(figure)
    curve, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_curve(curve, progress, rounds, words)
    _draw_bars(bars, progress, words)
    # One picture at a time: the rule for glyphs that matplotlib's own fonts lack is set for the whole process.
    with (
        _drawing,
        warnings.catch_warnings(),
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "accord"}),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw_curve(axes: Axes, progress: Progress, rounds: int, words: PlotWords) -> None:
    _frame(axes)
    axes.set_xlim(-0.2, rounds + 0.2)
    axes.set_xlabel(words.round, color=INK)
    axes.set_ylabel(words.accuracy, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not progress.curve:
        _say(axes, words.waiting)
        return
    numbers, values = zip(*progress.curve, strict=True)
    axes.plot(numbers, values, color=FEDERATED, marker="o", markersize=5, linewidth=2, label=words.federated)
    axes.annotate(
        f"{values[-1]:.0%}",
        (numbers[-1], values[-1]),
        textcoords="offset points",
        xytext=(0, 9),
        ha="center",
        color=FEDERATED,
        fontweight="bold",
    )
    for site, value in sorted(progress.baseline.items()):
        axes.axhline(value, color=ALONE, linestyle="--", linewidth=1)
        axes.annotate(
            f"{site} ({words.alone})",
            (0, value),
            textcoords="offset points",
            xytext=(2, 3),
            color=ALONE,
            size=8,
        )


def _draw_bars(axes: Axes, progress: Progress, words: PlotWords) -> None:
    _frame(axes)
    sites = sorted(set(progress.final) & set(progress.baseline))
    if not sites:
        axes.set_xticks([])
        _say(axes, words.waiting)
        return
    places = range(len(sites))
    _bars(
        axes,
        [place - 0.2 for place in places],
        [progress.baseline[site] for site in sites],
        ALONE,
        words.alone,
    )
    _bars(
        axes,
        [place + 0.2 for place in places],
        [progress.final[site] for site in sites],
        FEDERATED,
        words.federated,
    )
    axes.set_xticks(list(places), sites)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8, frameon=False)


def _bars(axes: Axes, places: Sequence[float], values: Sequence[float], colour: str, label: str) -> None:
    bars = axes.bar(places, values, 0.38, color=colour, label=label)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=2, fontsize=8, color=INK)


def _frame(axes: Axes) -> None:
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
        axes.spines[side].set_color(GRID)


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=INK)
