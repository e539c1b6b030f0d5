"""Tasks as an evaluation takes them: by name, each with rewards, decoding and samples of its own, or in common."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dirl.rewards import Reward
from dirl.tasks import Split, Task
from dirl.types import DecodingParams


@dataclass(frozen=True)
class EvaluationTask:
    """A task and how it is evaluated.

    Args:
        task: its prompts are answered.
        decoding: settings by name; None: those of the evaluation.
        samples: responses per prompt; None: as many as the evaluation makes.
        rewards: their weighted sum is the reward; None: those of the task.
        correct: name of the reward that says what is correct; None: the first that judges.
        limit: use the first so many prompts; None: all.
        split: whose prompts; None: those of `val`.
    """

    task: Task
    decoding: dict[str, DecodingParams] | None = None
    samples: int | None = None
    rewards: list[Reward] | None = None
    correct: str | None = None
    limit: int | None = None
    split: Split | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"tasks: {name}={value}: use at least 1, or null")

    def scored_by(self, name: str) -> list[Reward]:
        """The task's rewards; ValueError, with the option's name, if it has none."""
        found = self.rewards if self.rewards is not None else self.task.rewards()
        if not found:
            raise ValueError(
                f"{name}: no rewards are given, and the task ({type(self.task).__name__}) names none; name one, e.g. "
                "rewards: [{class_path: dirl.rewards.Accuracy}]"
            )
        return found


def named_tasks(
    tasks: Mapping[str, Task | EvaluationTask],
    decoding: Mapping[str, DecodingParams] | None,
    samples: int,
    option: str = "",
) -> dict[str, EvaluationTask]:
    """Each with decoding and samples; ValueError for one without, and for a name that no file can have.

    Args:
        option: what stands before `tasks` in the names of options.
    """
    found = {}
    for name, given in tasks.items():
        check_name(name, f"{option}tasks")
        task = given if isinstance(given, EvaluationTask) else EvaluationTask(given)
        task = replace(task, decoding=task.decoding or dict(decoding or {}), samples=task.samples or samples)
        if not task.decoding:
            raise ValueError(
                f"{option}tasks.{name}: no decoding is given, and {option}decoding is empty; name a setting, e.g. "
                "decoding: {greedy: {temperature: 0}}"
            )
        for key in task.decoding:
            check_name(key, f"{option}decoding")
        found[name] = task
    return found


def check_name(name: str, option: str) -> None:
    """Raise ValueError for a name that cannot be part of a file's name."""
    if not re.fullmatch(r"[\w.@+=-]+", name) or name.startswith(".") or name == "problems":
        raise ValueError(
            f"{option}: {name!r} is to name files and columns: use letters, digits and any of _ . @ + = -, and not "
            "`problems`, which is a folder of the results"
        )
