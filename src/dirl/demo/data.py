"""A task's rows as JSON Lines files, for people to look at."""

import json
from collections.abc import Iterable
from pathlib import Path

from dirl.tasks import GeneratedTask


def write_task_files(task: GeneratedTask, directory: Path) -> None:
    """What the demo learns from and is evaluated on. The same task gives the same bytes.

    sft.jsonl has questions with the teacher's solutions, sft_val.jsonl those of the validation of SFT:
    `{"messages": [user, assistant]}`; questions may repeat. rl.jsonl has distinct questions, and eval.jsonl others,
    which are neither there nor in sft.jsonl: `{"question", "ground_truth_answer"}`.
    """
    write_jsonl(directory / "sft.jsonl", task.conversations("train"))
    write_jsonl(directory / "sft_val.jsonl", task.conversations("val"))
    write_jsonl(directory / "rl.jsonl", task.rows("train"))
    write_jsonl(directory / "eval.jsonl", task.rows("val"))


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
