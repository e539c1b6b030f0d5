"""Trajectories on disk: JSON Lines, one a line, fields named as in `Trajectory`, with words for people beside them."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dirl.finite import dumps, first_not_finite
from dirl.types import Trajectory, trajectory_from_dict


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


NOTHING = Annotation()
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
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    unknown = sorted(set(row) - {*FIELDS, *ANNOTATION_FIELDS}) if isinstance(row, dict) else None
    if unknown is None or unknown:
        expected = f"expected {sorted(FIELDS)}, and perhaps {sorted(ANNOTATION_FIELDS)}"
        raise ValueError(f"{where}: not a trajectory (unknown fields: {unknown}); {expected}")
    words = {name: row.pop(name) for name in ANNOTATION_FIELDS if name in row}
    if found := first_not_finite(row):  # Python's JSON reads NaN, Infinity and 1e999
        raise ValueError(f"{where}: not a trajectory: {found}; numbers must be finite")
    for name, value in (*row.items(), *words.items()):
        if wrong := _wrong(name, value):
            raise ValueError(f"{where}: not a trajectory: {name} {wrong}")
    if words.get("token_texts") is not None:
        words["token_texts"] = tuple(words["token_texts"])
    try:
        return trajectory_from_dict(row), Annotation(**words) if words else NOTHING
    except TypeError as error:
        raise ValueError(f"{where}: not a trajectory: {error}") from error


NULL = type(None)
WHOLE, NUMBER, TEXT = frozenset({int}), frozenset({int, float}), frozenset({str})
KINDS: dict[str, frozenset[type]] = {
    **dict.fromkeys(("prompt_id", "finish_reason"), TEXT),
    **dict.fromkeys(("sample_index", "response_length", "policy_version"), WHOLE),
    **dict.fromkeys(("reward", "advantage"), NUMBER | {NULL}),
    **dict.fromkeys(("question", "response", "ground_truth"), TEXT | {NULL}),
    "block_size": WHOLE | {NULL},
    "correct": frozenset({bool, NULL}),
}
"""JSON's type of each field that is one value."""
LISTS: dict[str, frozenset[type]] = {
    **dict.fromkeys(("prompt_ids", "response_ids", "step_map"), WHOLE),
    "behaviour_logprobs": NUMBER,
    "token_texts": TEXT,
}
"""Types of the items of each field that is a list."""


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with the type of a field; None: nothing."""
    if name in KINDS:
        found = type(value)
        return None if found in KINDS[name] else f"is of type {found.__name__}, not {_names(KINDS[name])}"
    if name == "rewards":
        fits = isinstance(value, dict) and set(map(type, value.values())) <= NUMBER
        return None if fits else "is no mapping of names to numbers"
    if name == "token_texts" and value is None:
        return None
    if isinstance(value, list) and set(map(type, value)) <= LISTS[name]:
        return None
    return f"is no list of {_names(LISTS[name])}"


def _names(kinds: frozenset[type]) -> str:
    words = {int: "int", float: "float", str: "str", bool: "bool", NULL: "null"}
    return " or ".join(sorted(words[kind] for kind in kinds))
