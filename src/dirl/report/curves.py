"""Learning curves of a run's two stages."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dirl.report.figure import INK, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]

LINES = ("#2368a8", "#d9722b", "#3a8f5c", "#8a4fa3")
SMOOTHED_FROM = 60
"""A curve of at least this many points is drawn pale, with its running mean on top."""


@dataclass(frozen=True)
class Panel:
    stage: str
    title: str
    y_label: str
    curves: Mapping[str, str]
    """Metric to legend label."""
    points: Mapping[str, str]
    """Metric to legend label, of what is measured now and then and drawn as points."""


PANELS = (
    Panel("SFT", "SFT loss", "nats per response token", {"loss": "training"}, {"validation_nelbo": "validation NELBO"}),
    Panel(
        "RL",
        "RL reward and held-out accuracy",
        "share of right answers",
        {"reward": "rollouts"},
        {"accuracy": "held out"},
    ),
    Panel("RL", "Speed of the rollouts", "response tokens per denoising step", {"tokens_per_step": "rollouts"}, {}),
    Panel("RL", "Entropy of the policy", "nats per token", {"entropy": "rollouts"}, {}),
)


def learning_curves(path: str | Path, sft: Rows, rl: Rows, evals: Mapping[str, float]) -> Path:
    """Draw a PNG of 1200x800 pixels, one panel for each group of metrics that the rows hold.

    sft: rows with `step` (optimizer step) and any of `loss`, `validation_nelbo`.
    rl: rows with `step` and any of `reward` (rollouts, their sampled accuracy where a reward is 0 or 1),
        `accuracy` (held-out, 0..1), `tokens_per_step`, `entropy`.
    evals: label to held-out accuracy (0..1), e.g. {"before RL": 0.46, "after RL": 0.76}; lines across the
        reward panel.
    A row need not hold every metric, and one that is NaN is not drawn; a panel without values is left out.
    """
    return save(curves_figure(sft, rl, evals), path, dpi=100)


def curves_figure(sft: Rows, rl: Rows, evals: Mapping[str, float]) -> "Figure":
    stages = {"SFT": sft, "RL": rl}
    panels = [p for p in PANELS if any(series(stages[p.stage], key)[0] for key in (*p.curves, *p.points))]
    if not panels:
        wanted = sorted({key for panel in PANELS for key in (*panel.curves, *panel.points)})
        raise ValueError(f"no learning curves to draw: no row of sft or rl holds `step` and one of {wanted}")
    columns = min(2, len(panels))
    figure = new_figure(12, 8)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    for axes, panel in itertools.zip_longest(grid, panels):
        if panel is None:
            axes.set_axis_off()
        else:
            draw_panel(axes, panel, stages[panel.stage], evals if "reward" in panel.curves else {})
    return figure


def draw_panel(axes: "Axes", panel: Panel, rows: Rows, levels: Mapping[str, float]) -> None:
    colours = iter(itertools.cycle(LINES))
    for key, label in panel.curves.items():
        draw_curve(axes, *series(rows, key), label=label, colour=next(colours))
    for key, label in panel.points.items():
        steps, values = series(rows, key)
        if steps:
            axes.plot(steps, values, "o-", color=next(colours), markersize=5, linewidth=1, label=label)
    for (label, value), style in zip(levels.items(), itertools.cycle(("--", "-.", ":")), strict=False):
        axes.axhline(value, color=INK, linestyle=style, linewidth=1.3, label=f"{label}: {100 * value:.1f} %")
    axes.set_title(panel.title, fontsize=13, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel(f"{panel.stage} step", color=INK)
    axes.set_ylabel(panel.y_label, color=INK)
    axes.grid(alpha=0.25)
    if levels:
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_lines()) > 1:
        place: Literal["lower right", "best"] = "lower right" if levels else "best"
        axes.legend(loc=place, fontsize=10, facecolor="white", edgecolor="none", framealpha=0.85)


def draw_curve(axes: "Axes", steps: list[float], values: list[float], label: str, colour: str) -> None:
    if len(steps) < SMOOTHED_FROM:
        if steps:
            axes.plot(steps, values, color=colour, linewidth=1.8, label=label)
        return
    window = max(5, len(steps) // 30 | 1)
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, running_mean(values, window), color=colour, linewidth=1.8, label=f"{label}, mean of {window}")


def series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, where it was measured, in the order of the steps."""
    found = sorted((row["step"], row[key]) for row in rows if "step" in row and key in row)
    found = [(step, value) for step, value in found if not math.isnan(value)]
    return [step for step, _ in found], [value for _, value in found]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the values at most window // 2 places away, of fewer at both ends."""
    reach = window // 2
    parts = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(part) / len(part) for part in parts]
