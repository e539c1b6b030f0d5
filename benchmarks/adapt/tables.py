"""What the runs say: a row for each arm, with intervals over seeds, and a figure of the bound over training tokens."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.tables import half_interval

COLUMNS = ("at the start", "a quarter", "half", "at the end", "tokens to scratch's end", "packed Mtokens", "CPU s")
"""The bound in nats per token on held-out conversations; the training tokens at which it is what the arm from scratch,
with blocks of one size, ends with; packed tokens and processor seconds of a run."""


def row(curves: Sequence[dict[str, Any]], baseline: dict[int, float], tokens_per_step: float) -> dict[str, Any]:
    """Of the runs of one arm, one a seed.

    Args:
        baseline: by seed, the bound to be reached.
        tokens_per_step: of conversations.
    """
    last = curves[0]["curve"][-1]["step"]
    parts = {"at the start": 0, "a quarter": last // 4, "half": last // 2, "at the end": last}
    found = {name: summary([at(run, step) for run in curves]) for name, step in parts.items()}
    reached = [first_below(run, baseline[run["seed"]]) for run in curves]
    found["tokens to scratch's end"] = (
        "not all" if None in reached else summary([step * tokens_per_step for step in reached if step is not None])
    )
    found["packed Mtokens"] = summary([run["packed_tokens"] / 1e6 for run in curves])
    found["CPU s"] = summary([run["processor_s"] for run in curves])
    return found


def summary(values: Sequence[float]) -> str:
    """Mean, and half of Student's 95 % interval."""
    mean, half = statistics.fmean(values), half_interval(values)
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 3
    return f"{mean:,.{digits}f}" + ("" if half is None else f" ± {half:,.{digits}f}")


def at(run: dict[str, Any], step: int) -> float:
    """The bound at the last evaluation that is not after a step."""
    return [point["nelbo"] for point in run["curve"] if point["step"] <= step][-1]


def first_below(run: dict[str, Any], wanted: float) -> float | None:
    """The step at which the bound comes down to a value, in a line between evaluations; None: it does not."""
    for before, after in zip(run["curve"], run["curve"][1:], strict=False):
        if after["nelbo"] <= wanted:
            share = (before["nelbo"] - wanted) / (before["nelbo"] - after["nelbo"])
            return before["step"] + share * (after["step"] - before["step"])
    return None


def draw(path: Path, arms: dict[str, list[dict[str, Any]]], tokens_per_step: float, floor: float) -> Path:
    """The mean over seeds and every seed's curve; the autoregressive model's own -log p as a line.

    Args:
        floor: that -log p, per token as the bound counts them.
    """
    from dirl.report.figure import new_figure, save

    figure = new_figure(8, 5)
    axes = figure.subplots()
    for number, (name, runs) in enumerate(arms.items()):
        colour = f"C{0 if name.startswith('AR') else 1}"
        style = "-" if "1, 2, 4" in name else "--"
        steps = [point["step"] * tokens_per_step / 1e3 for point in runs[0]["curve"]]
        curves = [[point["nelbo"] for point in run["curve"]] for run in runs]
        for curve in curves:
            axes.plot(steps, curve, color=colour, linestyle=style, linewidth=0.5, alpha=0.5)
        mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        axes.plot(steps, mean, color=colour, linestyle=style, label=name, zorder=3 + number)
    axes.axhline(floor, color="#1f2933", linewidth=1, linestyle=":", label="the AR model itself, -log p")
    axes.set(xlabel="training tokens, thousands", ylabel="NELBO per token, blocks of 4, nats", yscale="log")
    axes.legend()
    axes.grid(alpha=0.2, which="both")
    return save(figure, path, dpi=100)
