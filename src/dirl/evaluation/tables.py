"""Results side by side: a row for each model and decoding, for each task accuracy, tokens per step and length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dirl.evaluation.paired import Paired, check_same_problems, paired
from dirl.evaluation.results import Result

SHOWN = {"accuracy": "accuracy", "tokens_per_step": "tokens/step", "response_length": "length"}
"""Metrics of a table, and what they are called in it."""
MEAN = "mean"


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float | None = None
    high: float | None = None

    def text(self, metric: str) -> str:
        """Shares in percent, with their interval; other numbers alone."""
        if not is_share(metric):
            return f"{self.value:.0f}" if metric == "response_length" and self.value >= 100 else f"{self.value:.2f}"
        interval = "" if self.low is None or self.high is None else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f}{interval}"


@dataclass(frozen=True)
class Row:
    model: str
    decoding: str
    results: Mapping[str, Result]
    """The results of this column, by task."""

    def estimate(self, task: str, metric: str) -> Estimate | None:
        """The metric on a task; None: it was not evaluated there. A mean over tasks is that of the whole table."""
        if task == MEAN:
            return None
        result = self.results.get(task)
        return None if result is None else estimate(result.metrics, metric)


@dataclass(frozen=True)
class Comparison:
    rows: list[Row]
    tasks: list[str]
    labels: dict[str, str]
    """What is said of a task's accuracy: avg@k of its samples."""

    @property
    def groups(self) -> list[str]:
        """The groups of columns: the tasks, and their mean where there are several."""
        return [*self.tasks, MEAN] if len(self.tasks) > 1 else self.tasks

    def estimate(self, row: Row, group: str, metric: str) -> Estimate | None:
        if group != MEAN:
            return row.estimate(group, metric)
        values = [row.estimate(task, metric) for task in self.tasks]
        known = [value.value for value in values if value is not None]
        return Estimate(fmean(known)) if len(known) == len(self.tasks) else None


@dataclass(frozen=True)
class Pair:
    """Two models on the same problems, decoded alike."""

    first: str
    second: str
    task: str
    decoding: str
    paired: Paired


def compare(results: Sequence[Result], names: Sequence[str]) -> Comparison:
    """Rows and columns of all results; ValueError for a task that is not the same everywhere.

    Args:
        names: of the models, one for each result.
    """
    tasks = list(dict.fromkeys(result.task for result in results))
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for name, result in zip(names, results, strict=True):
        found = rows.setdefault((name, result.decoding), {})
        if result.task in found:
            raise ValueError(
                f"{result.folder}: {name}, {result.decoding} on {result.task} is there twice; name each run once"
            )
        found[result.task] = result
    for task in tasks:
        check_same_prompts([result for result in results if result.task == task])
    labels = {task: samples_label([result for result in results if result.task == task]) for task in tasks}
    return Comparison([Row(*key, by_task) for key, by_task in rows.items()], tasks, labels)


def check_same_prompts(results: Sequence[Result]) -> None:
    """Raise ValueError for results of one name on other problems."""
    first = results[0]
    for other in results[1:]:
        if other.settings["prompts"]["digest"] == first.settings["prompts"]["digest"]:
            continue
        if other.settings["prompts"]["count"] == first.settings["prompts"]["count"] and _same_questions(first, other):
            continue  # another tokenizer, or another template
        counts = [result.settings["prompts"]["count"] for result in (first, other)]
        raise ValueError(
            f"task {first.task!r} is not the same in {first.folder} and {other.folder} ({counts[0]} and {counts[1]} "
            "problems): compare results of the same data and limits"
        )


def pairs(results: Sequence[Result], names: Sequence[str], resamples: int = 1000, seed: int = 0) -> list[Pair]:
    """Where there are two models: the second against the first on each task and decoding that both have."""
    models = list(dict.fromkeys(names))
    if len(models) != 2:
        return []
    by_key = {(name, r.task, r.decoding): r for name, r in zip(names, results, strict=True)}
    found = []
    for name, task, decoding in by_key:
        other = by_key.get((models[1], task, decoding))
        if name == models[0] and other is not None:
            first, second = by_key[name, task, decoding].read_problems(), other.read_problems()
            found.append(Pair(models[0], models[1], task, decoding, paired(first, second, resamples, seed)))
    return found


def estimate(metrics: Mapping[str, float], metric: str) -> Estimate | None:
    if metric not in metrics:
        return None
    return Estimate(metrics[metric], metrics.get(f"{metric}/low"), metrics.get(f"{metric}/high"))


def is_share(metric: str) -> bool:
    return metric in ("accuracy", "truncated") or metric.startswith(("pass_at_", "maj_at_"))


def samples_label(results: Sequence[Result]) -> str:
    """`avg@4`, or `avg@1-4` where results differ in it."""
    counts = sorted({result.count for result in results})
    return f"avg@{counts[0]}" if len(counts) == 1 else f"avg@{counts[0]}-{counts[-1]}"


def _same_questions(first: Result, other: Result) -> bool:
    problems, others = first.read_problems(), other.read_problems()
    try:
        check_same_problems(problems, others)
    except ValueError:
        return False
    return True
