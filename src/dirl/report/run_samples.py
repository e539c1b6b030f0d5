"""Responses of a run over time: those that the Samples callback kept, else some of the saved trajectories."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dirl.report.run_folder import Run
from dirl.report.secrets import hide_in_text
from dirl.trajectory_files import Annotation, read_annotated
from dirl.types import Trajectory

FILE = "samples.jsonl"
"""The file in the folder of a start: a JSON object a line, of the fields of `sample_row`."""
EPOCHS, EACH = 8, 4
"""How many epochs the page shows responses of, and how many of each."""
LONGEST = 6000
"""Characters of a text that the page shows."""


def sample_row(epoch: int, step: int, trajectory: Trajectory, words: Annotation) -> dict[str, Any]:
    """One response as the page and the logs show it, in words."""
    return {
        "epoch": epoch,
        "step": step,
        "prompt_id": trajectory.prompt_id,
        "sample_index": trajectory.sample_index,
        "question": words.question,
        "response": words.response,
        "ground_truth": words.ground_truth,
        "reward": trajectory.reward,
        "rewards": dict(trajectory.rewards),
        "correct": trajectory.correct,
        "finish_reason": trajectory.finish_reason,
        "response_length": trajectory.response_length,
    }


def samples_of(run: Run) -> dict[str, Any]:
    """`rows` for the page, `source`, where they are from, and `note`, why there are none."""
    kept = _kept(run)
    if kept:
        epochs = _spread(sorted(kept))
        rows = [row for epoch in epochs for row in kept[epoch][:EACH]]
        return {"rows": [_shortened(row) for row in rows], "source": FILE, "note": None}
    files = _trajectory_files(run)
    rows = [row for epoch in _spread(sorted(files)) for row in _of_file(files[epoch], epoch)]
    if any(row["response"] is not None for row in rows):
        return {
            "rows": [_shortened(row) for row in rows],
            "source": str(next(iter(files.values())).parent),
            "note": None,
        }
    note = "no samples were kept: add `samples: {}` to the config, or rollout.save_trajectories with rollout.save_texts"
    if rows:
        note = "the saved trajectories hold no texts: set rollout.save_texts, or look at them by `lightning run trace`"
    return {"rows": [], "source": None, "note": note if run.learns_by == "RL" else None}


def _kept(run: Run) -> dict[int, list[dict[str, Any]]]:
    """The samples by epoch; those of a later start replace the same epoch's of the one before."""
    found: dict[int, list[dict[str, Any]]] = {}
    for path in (folder / FILE for folder in run.folders):
        if path.is_file():
            new: dict[int, list[dict[str, Any]]] = {}
            for row in _rows(path):
                new.setdefault(row["epoch"], []).append(row)
            found |= new
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                raise ValueError("no object with an epoch")
        except ValueError as error:
            if number == len(lines):
                return  # a killed run leaves half a line
            raise ValueError(f"{path}:{number}: no sample: {error}; remove the line") from error
        yield row


def _trajectory_files(run: Run) -> dict[int, Path]:
    """The trajectory files of the first rank, by epoch."""
    named = run.config.get("rollout.save_trajectories", "null")
    if named == "null":
        return {}
    folder = run.root if run.root.name != run.folders[0].name else run.root.parents[1]
    found = (folder / named).glob("epoch*-rank0.jsonl")
    return {int(path.name[len("epoch") :].partition("-")[0]): path for path in found}


def _of_file(path: Path, epoch: int) -> list[dict[str, Any]]:
    """One response of each of the first prompts."""
    rows: dict[str, dict[str, Any]] = {}
    for trajectory, words in read_annotated(path):
        if trajectory.prompt_id not in rows:
            rows[trajectory.prompt_id] = sample_row(epoch, trajectory.policy_version, trajectory, words)
        if len(rows) == EACH:
            break
    return list(rows.values())


def _spread(epochs: Sequence[int]) -> list[int]:
    """The first, the last, and some between."""
    if len(epochs) <= EPOCHS:
        return list(epochs)
    return [epochs[round(k * (len(epochs) - 1) / (EPOCHS - 1))] for k in range(EPOCHS)]


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    def short(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        more = len(text) - LONGEST
        return hide_in_text(text if more <= 0 else f"{text[:LONGEST]} … ({more} characters more)")

    return row | {name: short(row.get(name)) for name in ("question", "response", "ground_truth")}
