"""Accuracy against tokens per step, as a figure: what decoding faster costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dirl.report.figure import INK, PALE, new_figure, save

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
MARKERS = "osD^vP"


class Mark(NamedTuple):
    """One setting of a curve."""

    label: str
    tokens_per_step: float
    accuracy: float
    low: float | None
    high: float | None


def tradeoff_figure(path: str | Path, curves: Mapping[str, Sequence[Mark]], title: str) -> Path:
    """Draw a PNG of 1000x700 pixels: a line for each curve, its settings named at the points, bars as intervals."""
    figure = new_figure(10, 7)
    axes = figure.subplots()
    for number, (label, marks) in enumerate(curves.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        x, y = [mark.tokens_per_step for mark in marks], [100 * mark.accuracy for mark in marks]
        below = [100 * (mark.accuracy - mark.low) if mark.low is not None else 0.0 for mark in marks]
        above = [100 * (mark.high - mark.accuracy) if mark.high is not None else 0.0 for mark in marks]
        bars = [[max(0.0, value) for value in below], [max(0.0, value) for value in above]]
        axes.errorbar(x, y, bars, color=colour, marker=marker, linewidth=1.8, capsize=3, elinewidth=0.8, label=label)
        for index, (mark, place) in enumerate(zip(marks, y, strict=True)):
            beside = (4, 5) if index % 2 else (4, -12)  # neighbours often lie close together
            spot = (mark.tokens_per_step, place)
            axes.annotate(mark.label, spot, beside, textcoords="offset points", fontsize=8, color=INK)
    axes.set_title(title, fontsize=13, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel("response tokens per denoising step", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.grid(alpha=0.25, color=PALE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize=10, facecolor="white", edgecolor="none", framealpha=0.85)
    return save(figure, path, dpi=100)
