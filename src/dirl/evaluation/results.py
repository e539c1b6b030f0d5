"""Files of results: what an evaluation found, with how it came about."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dirl.evaluation.problems import Problem, read_problem
from dirl.evaluation.results_folder import PROBLEMS, RESULTS
from dirl.types import DecodingParams

FORMAT = "dirl evaluation 1"


@dataclass(frozen=True)
class Result:
    """One decoding of one task by one model."""

    model: str
    task: str
    decoding: str
    """The name of the decoding."""
    block_size: int
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    """What was asked for, as plain values: model, task, decoding, rewards, engine, samples, seed, versions."""
    starts: list[dict[str, Any]]
    """What each start made it with: device, dtype, commit, time."""
    problems: int
    file: str
    """The name of the file of per-problem results, which lies beside the file of results."""
    unjudged: list[dict[str, Any]]
    """Responses that count as wrong because they could not be judged: prompt id, sample, why."""
    notes: list[str]
    folder: Path = Path()
    kept: list[Problem] | None = None
    """The per-problem results, where they are in memory."""

    @property
    def name(self) -> str:
        """What it and its files are called: model, task and decoding, each where there are several."""
        return self.file.removeprefix(f"{PROBLEMS}/").removesuffix(".jsonl")

    @property
    def count(self) -> int:
        """Responses to each prompt."""
        return int(self.settings["samples"])

    @property
    def decoding_params(self) -> DecodingParams:
        return DecodingParams(**self.settings["decoding"])

    def read_problems(self) -> list[Problem]:
        if self.kept is not None:
            return self.kept
        path = self.folder / self.file
        if not path.is_file():
            raise ValueError(f"{path}: no such file, though the results name it; evaluate anew")
        with path.open(encoding="utf-8") as file:
            return [read_problem(line, f"{path}:{number}") for number, line in enumerate(file, 1)]

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("folder", "kept")}


def results_file(results: list[Result]) -> dict[str, Any]:
    return {"format": FORMAT, "results": [result.row() for result in results]}


def read_results(run: str | Path) -> list[Result]:
    """The results in a folder of `lightning run evaluate`, or in its file of results; ValueError for anything else."""
    path = Path(run).expanduser()
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"{run}: no {RESULTS} there; name folders that `lightning run evaluate --output FOLDER` has finished"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no JSON ({error}); name the results of an evaluation") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path}: no results of `lightning run evaluate` (format {found!r}, expected {FORMAT!r}); name a folder "
            "that it has written, or evaluate anew"
        )
    try:
        return [Result(**row, folder=path.parent) for row in value["results"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: results that lack something ({error}); evaluate anew") from error
