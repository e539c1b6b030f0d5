"""What the runs say: a row for each objective, with intervals over seeds, and a figure of accuracy against seconds."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.cases import Case

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Values -> the 97.5 % quantile of Student's distribution with one degree of freedom less."""
BASELINE = "DiPO"
COLUMNS = (
    *("sampled", "gain", "over DiPO", "greedy", "tokens per step", "entropy"),
    *("train s", "rollout s", "gain in 100 s", "Mtokens", "lr"),
)
"""Accuracies in per cent on held-out questions, sampled at temperature 1 and greedy; the gain is of the sampled one,
and its difference from that of DiPO is taken seed by seed."""


def best_rates(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Objective -> the learning rate of the greatest sampled accuracy at the end, of runs on one task."""
    found: dict[str, tuple[float, float]] = {}
    for result in results:
        key, score = result["objective"], last(result)["eval/sampled/accuracy"]
        if key not in found or score > found[key][0]:
            found[key] = score, result["lr"]
    return {key: lr for key, (_, lr) in found.items()}


def last(result: dict[str, Any]) -> dict[str, float]:
    """The evaluation at the end of a run."""
    return result["evaluations"][-1]


def summary(results: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Of the runs of one objective on one task, one a seed: mean, and half of Student's 95 % interval over seeds.

    Args:
        baseline: runs of another one from the same models, with which those of each seed are compared.
    """
    first = [result["evaluations"][0] for result in results]
    end = [last(result) for result in results]

    def of(values: Sequence[float]) -> tuple[float, float | None]:
        return statistics.fmean(values), half_interval(values)

    gains = [100 * (b["eval/sampled/accuracy"] - a["eval/sampled/accuracy"]) for a, b in zip(first, end, strict=True)]
    others = {result["seed"]: 100 * last(result)["eval/sampled/accuracy"] for result in baseline}
    both = [result for result in results if result["seed"] in others]
    spent = [result["train_s"] + result["rollout_s"] for result in results]
    over = [100 * last(result)["eval/sampled/accuracy"] - others[result["seed"]] for result in both]
    return {
        "runs": len(results),
        "over DiPO": of(over) if over and any(over) else None,
        "gain in 100 s": of([100 * gain / seconds for gain, seconds in zip(gains, spent, strict=True)]),
        "before": of([100 * row["eval/sampled/accuracy"] for row in first]),
        "sampled": of([100 * row["eval/sampled/accuracy"] for row in end]),
        "gain": of(gains),
        "greedy": of([100 * row["eval/greedy/accuracy"] for row in end]),
        "tokens per step": of([row["eval/sampled/tokens_per_step"] for row in end]),
        "entropy": of([result["entropy"]["last"] for result in results]),
        "train s": of([result["train_s"] for result in results]),
        "rollout s": of([result["rollout_s"] for result in results]),
        "Mtokens": of([result["trained_tokens"] / 1e6 for result in results]),
        "lr": results[0]["lr"],
    }


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95 % interval of the mean; None of one value. Of at most ten."""
    if len(values) < 2:
        return None
    return STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def row(objective: str, numbers: dict[str, Any]) -> list[str]:
    """As text, e.g. `84.1 ± 2.0`."""
    return [objective, *(_cell(numbers[name]) for name in COLUMNS)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, tuple):
        return f"{value:g}"
    mean, half = value
    digits = 1 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def draw(path: Path, task: str, results: Sequence[dict[str, Any]]) -> Path:
    """Sampled accuracy at each evaluation, the mean over seeds, against optimizer steps and processor seconds."""
    from dirl.report.figure import new_figure, save

    figure = new_figure(12, 5)
    axes = figure.subplots(1, 2, sharey=True)
    for objective in dict.fromkeys(result["objective"] for result in results):
        runs = [result for result in results if result["objective"] == objective]
        curves = [[100 * row["eval/sampled/accuracy"] for row in run["evaluations"]] for run in runs]
        steps = [row["step"] for row in runs[0]["evaluations"]]
        mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        spent = statistics.fmean(run["train_s"] + run["rollout_s"] for run in runs)
        axes[0].plot(steps, mean, label=objective)
        axes[1].plot([spent * step / max(steps[-1], 1) for step in steps], mean, label=objective)
    axes[0].set(xlabel="optimizer steps", ylabel="right answers, % (sampled, held out)", title=task)
    axes[1].set(xlabel="seconds of one core, rollouts and training")
    axes[1].legend()
    return save(figure, path, dpi=100)


def grouped(cases: Sequence[Case], results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Results by (task, objective)."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case, result in zip(cases, results, strict=True):
        found.setdefault((case.task, case.objective), []).append(result)
    return found
