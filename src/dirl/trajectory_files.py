"""Trajectories on disk: JSON Lines, one a line, fields named as in `Trajectory`, with words for people beside them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dirl.checked_json import from_json
from dirl.finite import dumps
from dirl.types import Trajectory


@dataclass(frozen=True)
class Annotation:
    """What a file may say of a trajectory for those who look at it; nothing is replayed or learned from it."""

    question: str | None = None
    response: str | None = None
    """The text up to, without, the stop token."""
    ground_truth: str | None = None
    token_texts: tuple[str, ...] | None = None
    """Texts of `prompt_ids`, then of `response_ids`, as `dirl.models.token_texts` writes them."""
    block_size: int | None = None


@dataclass(frozen=True)
class _Line(Annotation, Trajectory):
    """What a line holds: a trajectory and what is said of it."""


FIELDS = tuple(field.name for field in dataclasses.fields(Trajectory))
ANNOTATION_FIELDS = tuple(field.name for field in dataclasses.fields(Annotation))


def write_trajectories(
    path: str | Path, trajectories: Iterable[Trajectory], annotate: Callable[[Trajectory], Annotation] | None = None
) -> int:
    """Write a file; returns their number. NotFiniteError, which names the field, if a number is not finite.

    Args:
        annotate: what stands beside each; None: nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(trajectory_line(path, trajectory, annotate) + "\n")
            count += 1
    return count


def trajectory_line(
    path: Path, trajectory: Trajectory, annotate: Callable[[Trajectory], Annotation] | None = None
) -> str:
    """The line that a file has of a trajectory; see `write_trajectories`."""
    what = f"{path}: trajectory {trajectory.prompt_id}#{trajectory.sample_index}"
    words = {} if annotate is None else vars(annotate(trajectory))
    row = vars(trajectory) | {name: value for name, value in words.items() if value is not None}
    return dumps(row, what, ensure_ascii=False)


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Read what `write_trajectories` wrote; a bad line raises ValueError with file, line number and field."""
    return (trajectory for trajectory, _ in read_annotated(path))


def read_annotated(path: str | Path) -> Iterator[tuple[Trajectory, Annotation]]:
    """Read trajectories, each with what stands beside it."""
    with Path(path).open(encoding="utf-8") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _read_line(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number + 1}: not UTF-8 text: {error}; name a file of trajectories") from error


def _read_line(line: str, where: str) -> tuple[Trajectory, Annotation]:
    try:
        found = vars(from_json(_Line, line))
    except ValueError as error:
        raise ValueError(f"{where}: not a trajectory: {error}") from error
    words = {name: found[name] for name in ANNOTATION_FIELDS}
    return Trajectory(**{name: found[name] for name in FIELDS}), Annotation(**words)
