"""What a run learns is given once: as a task, or by options that name files."""

from collections.abc import Mapping
from typing import Any

from dirl.tasks.base import Task


def check_given_once(task: Task | None, sources: Mapping[Any, object]) -> None:
    """Raise ValueError for a task beside files, and for neither.

    Args:
        sources: the values of the options `data.NAME` that name files, by name; the first must be there without a task.
    """
    given = {name: value for name, value in sources.items() if value is not None}
    if task is not None and given:
        named = ", ".join(f"data.{name}={value!r}" for name, value in given.items())
        unset = " ".join(f"--data.{name}=null" for name in given)
        raise ValueError(
            f"{named}: given, and so is task={type(task).__name__}, which has data of its own; write {unset}, or set "
            "the task to null"
        )
    first = next(iter(sources))
    if task is None and first not in given:
        raise ValueError(
            f"data.{first} and task: neither is given, so there is nothing to ask or to learn; name a file, folder or "
            f"hub dataset by data.{first}, or a task, e.g. --task=dirl.tasks.Arithmetic"
        )


def said_of_files(task: Task | None, options: Mapping[str, tuple[object, object]]) -> str:
    """What options that describe files say though there are none; empty: nothing.

    Args:
        options: value and default by name.
    """
    said = [f"data.{name}={value!r}" for name, (value, default) in options.items() if value != default]
    return f"{', '.join(said)}: not used, as task={type(task).__name__} has no files" if task and said else ""
