"""What an evaluation leaves that a training run has made: a folder as `evaluate` writes them, which `compare` reads."""

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from dirl.evaluation.problems import Problem
from dirl.evaluation.results import Result, results_file
from dirl.evaluation.results_folder import RESULTS, write_whole
from dirl.finite import dumps

FOLDER = "evaluations"
"""Beside the logs; each evaluation has a folder there, step-N."""


def write_evaluation(logs: Path, step: int, results: Sequence[Result]) -> Path:
    """Per-problem results and the file of results; one of the same step is replaced, file by file.

    Args:
        logs: folder of the run's logs.
        results: with their problems in memory.
    """
    folder = logs / FOLDER / f"step-{step}"
    for result in results:
        path = folder / result.file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = (dataclasses.asdict(problem) for problem in result.read_problems())
        write_whole(path, "".join(f"{dumps(row, str(path), ensure_ascii=False)}\n" for row in rows))
    path = folder / RESULTS
    write_whole(path, dumps(results_file(list(results)), str(path), indent=1, ensure_ascii=False) + "\n")
    return folder


def in_order(ranks: Sequence[Sequence[Problem]]) -> list[Problem]:
    """The problems of all ranks in the order of the prompts, of which each rank had every so manieth."""
    return [problem for row in zip_longest(*ranks) for problem in row if problem is not None]
