"""Trajectories on disk: JSON Lines, one a line, fields named as in `Trajectory`."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from dirl.finite import dumps, first_not_finite
from dirl.types import Trajectory, trajectory_from_dict


def write_trajectories(path: str | Path, trajectories: Iterable[Trajectory]) -> int:
    """Write a file; returns their number. NotFiniteError, which names the field, if a number is not finite."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for trajectory in trajectories:
            what = f"{path}: trajectory {trajectory.prompt_id}#{trajectory.sample_index}"
            file.write(dumps(dataclasses.asdict(trajectory), what, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Read what `write_trajectories` wrote; a bad line raises ValueError with file, line number and field."""
    names = {f.name for f in dataclasses.fields(Trajectory)}
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            unknown = sorted(set(row) - names) if isinstance(row, dict) else None
            if unknown is None or unknown:
                raise ValueError(
                    f"{path}:{number}: not a trajectory (unknown fields: {unknown}); expected {sorted(names)}"
                )
            if found := first_not_finite(row):  # Python's JSON reads NaN, Infinity and 1e999
                raise ValueError(f"{path}:{number}: not a trajectory: {found}; numbers must be finite")
            try:
                yield trajectory_from_dict(row)
            except TypeError as error:
                raise ValueError(f"{path}:{number}: not a trajectory: {error}") from error
