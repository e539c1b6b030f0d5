"""The folder of an evaluation: what has been done lies there at every moment, and a killed evaluation goes on from it.

    settings.json           what each part was asked for, by which its results are known again
    PART.jsonl              trajectories
    problems/PART.jsonl     per-problem results, a line a prompt, in the order of the prompts
    results.json            all metrics, with how they came about

A part is one decoding of one task by one model: DECODING, or MODEL/TASK/DECODING where several are named.
"""

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dirl.checkpoints.files import flush
from dirl.evaluation.problems import Problem, read_problem
from dirl.evaluation.run import Settings
from dirl.finite import dumps
from dirl.outputs import check_new_folder
from dirl.trajectory_files import Annotation, trajectory_line
from dirl.types import Prompt, Trajectory

Annotate = Callable[[Trajectory], Annotation]
SETTINGS, RESULTS, PROBLEMS = "settings.json", "results.json", "problems"


class ResultsFile:
    """The two files of one part.

    Args:
        annotate: what stands beside each trajectory; None: nothing.
    """

    def __init__(self, folder: Path, name: str, annotate: Annotate | None = None) -> None:
        self.name, self.annotate = name, annotate
        self.problems, self.trajectories = folder / PROBLEMS / f"{name}.jsonl", folder / f"{name}.jsonl"

    def whole(self, prompts: Sequence[Prompt]) -> bool:
        """Whether all of it has been evaluated."""
        return len(whole_lines(self.problems)) >= len(prompts)

    def read(self, prompts: Sequence[Prompt], settings: Settings) -> list[Problem]:
        """What has been done, of whole portions; what lies behind them in the files is cut off."""
        lines = whole_lines(self.problems)
        size = settings.prompts_at_a_time(len(prompts))
        count = len(prompts) if len(lines) >= len(prompts) else len(lines) // size * size
        made = whole_lines(self.trajectories)
        while count and len(made) < count * settings.count:  # a portion's trajectories are flushed before its problems
            count = max(0, (count - 1) // size * size)
        cut(self.problems, lines[:count])
        cut(self.trajectories, made[: count * settings.count])
        found = [read_problem(line, f"{self.problems}:{number}") for number, line in enumerate(lines[:count], 1)]
        for problem, prompt in zip(found, prompts, strict=False):
            if problem.prompt_id != prompt.prompt_id or len(problem.responses) != settings.count:
                raise ValueError(
                    f"{self.problems}: prompt {problem.prompt_id!r} stands where {prompt.prompt_id!r} was asked: the "
                    "file has been changed; name another folder, or add --overwrite=true"
                )
        return found

    def append(self, problems: Sequence[Problem], trajectories: Sequence[Trajectory]) -> None:
        """One portion, which is on the disk when this returns."""
        path = self.trajectories
        append_lines(path, [trajectory_line(path, trajectory, self.annotate) for trajectory in trajectories])
        rows = (dataclasses.asdict(problem) for problem in problems)
        append_lines(self.problems, [dumps(row, str(self.problems), ensure_ascii=False) for row in rows])


class ResultsFolder:
    """Made new, or gone on with: where the folder has been filled by the same settings.

    Args:
        parts: what each part is asked for, by name, as plain values.
        overwrite: what other settings have left there is removed.

    Raises:
        ValueError: the folder has results of other settings, or anything else.
    """

    def __init__(self, path: str | Path, parts: Mapping[str, Mapping[str, Any]], overwrite: bool = False) -> None:
        self.path, self.parts = Path(path), {name: json.loads(dumps(part, name)) for name, part in parts.items()}
        known = read_settings(self.path)
        if overwrite and known is not None:
            self._clear(known["parts"])
            known = None
        elif known is not None:
            check_same(self.path, known["parts"], self.parts)
        if known is None:
            check_new_folder(self.path, "output", overwrite)
        self.starts: dict[str, list[dict[str, Any]]] = {} if known is None else known["starts"]
        self._lock = self._locked()
        self._write_settings()

    def file(self, name: str, annotate: Annotate | None = None) -> ResultsFile:
        return ResultsFile(self.path, name, annotate)

    def started(self, name: str, made_by: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What each start has made a part with, and what makes it now."""
        known = self.starts.setdefault(name, [])
        if made_by:
            known += map(dict, made_by)
            self._write_settings()
        return known

    def write(self, name: str, value: Any) -> None:
        """A JSON file beside the others, whole or not at all."""
        write_whole(self.path / name, dumps(value, name, indent=1, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a file of JSON Lines, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{dumps(row, name, ensure_ascii=False)}\n" for row in rows))

    def _write_settings(self) -> None:
        self.write(SETTINGS, {"parts": self.parts, "starts": self.starts})

    def _locked(self) -> int:
        """Lock the folder until this process ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                return -1  # a file system without locks
            raise ValueError(
                f"output={str(self.path)!r}: another evaluation is writing to it; wait for it, or name another folder"
            ) from error
        return descriptor

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _clear(self, parts: Iterable[str]) -> None:
        for name in parts:
            self.file(name).trajectories.unlink(missing_ok=True)
        shutil.rmtree(self.path / PROBLEMS, ignore_errors=True)
        for name in (SETTINGS, RESULTS):
            (self.path / name).unlink(missing_ok=True)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What an evaluation was asked for whose folder this is; None: it is none."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(known["parts"], dict) and isinstance(known["starts"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path}: not the settings of an evaluation; name another folder") from error
    return known


def check_same(folder: Path, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """ValueError that names what differs between the parts of a folder and those asked for; new parts may come."""
    missing = [name for name in known if name not in asked]
    said = [f"it holds {', '.join(missing)}, not asked for now"] if missing else []
    for name in (name for name in known if name in asked):
        said += [f"{name}: {difference}" for difference in differences(known[name], asked[name])]
    if said:
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise ValueError(
            f"output={str(folder)!r} holds results of other settings ({'; '.join(said[:3])}{more}): ask for the same "
            "to go on with them, name another folder, or add --overwrite=true to make them anew"
        )


def differences(known: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(known, dict) and isinstance(asked, dict):
        keys = [*known, *(key for key in asked if key not in known)]
        return [d for k in keys for d in differences(known.get(k), asked.get(k), f"{name}.{k}" if name else k)]
    return [] if known == asked else [f"{name} was {known!r}, is {asked!r}"]


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that have an end; none if there is no file."""
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def cut(path: Path, lines: Sequence[bytes]) -> None:
    """Take off all that follows these lines, with which the file begins."""
    size = sum(map(len, lines))
    if path.is_file() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines, and flush them to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())
    if new:
        flush(path.parent)


def write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    flush(part)
    part.replace(path)
    flush(path.parent)
