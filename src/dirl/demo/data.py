"""The demo's data: a task's rows as JSON Lines files."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dirl.tasks import GeneratedTask


@dataclass(frozen=True)
class TaskFiles:
    sft: Path
    """{"messages": [user, assistant]}: questions with the teacher's solutions; questions may repeat."""
    rl: Path
    """{"question", "ground_truth_answer"}: distinct questions."""
    eval: Path
    """As `rl`; no question of it is in `sft` or `rl`."""


def write_task_files(task: GeneratedTask, directory: Path) -> TaskFiles:
    """The same task gives the same bytes."""
    return TaskFiles(
        sft=write_jsonl(directory / "sft.jsonl", task.conversations()),
        rl=write_jsonl(directory / "rl.jsonl", task.rows("train")),
        eval=write_jsonl(directory / "eval.jsonl", task.rows("val")),
    )


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
