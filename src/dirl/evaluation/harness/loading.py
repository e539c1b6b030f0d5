"""Tasks of lm-evaluation-harness by name; those that need log-likelihoods are refused before their data is read."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from dirl.progress_bar import on_terminal
from dirl.tasks.lm_eval import LMEval

GENERATES = "generate_until"
REFUSED = (
    "a block-diffusion model gives no exact log-likelihood of a given text at the cost of a forward (it depends on the "
    "order in which tokens are committed, over which it would have to be summed): name a task that generates, "
    f"of output_type {GENERATES}"
)


@dataclass(frozen=True)
class Loaded:
    """What was named, with its data.

    Args:
        manager: lm_eval's TaskManager, which knows the names.
        tasks: by name, of groups and tags those below them.
    """

    manager: Any
    tasks: dict[str, Any]


def load_tasks(asked: LMEval) -> Loaded:
    """Raise ValueError for names that are unknown, and tasks that do not generate."""
    for path in asked.include_path or []:
        if not Path(path).is_dir():
            raise ValueError(f"task.include_path={path!r}: no such folder; name one with task files of lm_eval (YAML)")
    with quiet():
        manager = _manager(asked)
        for name in asked.names:
            for task, kind in output_types(manager.task_index, name):
                _check_generates(task, kind)
        try:
            loaded = manager.load(list(asked.names))
        except (OSError, ValueError, KeyError, ConnectionError) as error:
            raise ValueError(
                f"task=lm_eval:{','.join(asked.names)}: its data cannot be read ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); without a network, name a task of your own by task.include_path "
                "whose dataset_path is `json` and whose dataset_kwargs.data_files name files"
            ) from error
    for name, task in loaded["tasks"].items():
        _check_generates(name, task.OUTPUT_TYPE)
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(
                f"lm_eval:{name}: it runs code that the model wrote without a sandbox, and is refused; "
                "dirl.tasks.HumanEval and dirl.tasks.MBPP run it in one"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ValueError(f"lm_eval:{name}: it asks about pictures or sounds, and the model reads texts alone")
    return Loaded(manager, loaded["tasks"])


def _manager(asked: LMEval) -> Any:
    """A manager of one's own tasks alone, if they are all that is named: the package has 14,000 files."""
    from lm_eval.tasks import TaskManager

    if asked.include_path:
        own = TaskManager(include_path=asked.include_path, include_defaults=False)
        if all(name in own.task_index for name in asked.names):
            return own
    manager = TaskManager(include_path=asked.include_path)
    for name in asked.names:
        if name not in manager.task_index:
            nearest = get_close_matches(name, manager.all_tasks, 3)
            meant = f" (nearest: {', '.join(nearest)})" if nearest else ""
            raise ValueError(
                f"lm_eval:{name}: lm_eval has no such task{meant}; name one of `lm_eval ls tasks`, or a folder with "
                "tasks of your own by --task.include_path"
            )
    return manager


def output_types(index: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    """Task and output_type of all that is known to lie below a name, without reading any data."""
    entry = index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    below = config.get("task") if "group" in config else None
    if entry.kind.name == "TAG":
        below = sorted(other for other, one in index.items() if name in one.tags and other != name)
    if isinstance(below, list):
        for one in below:
            yield from output_types(index, one) if isinstance(one, str) else ()
    elif "output_type" in config:
        yield name, config["output_type"]


def _check_generates(name: str, output_type: str) -> None:
    if output_type != GENERATES:
        raise ValueError(f"lm_eval:{name}: its output_type is {output_type}, and {REFUSED}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm_eval tells of every step, and draws bars into files too; its errors stay."""
    from lm_eval.api import task

    logger, drawn = logging.getLogger("lm_eval"), task.tqdm
    before = logger.level
    logger.setLevel(logging.ERROR)
    task.tqdm = partial(drawn, disable=not on_terminal())
    try:
        yield
    finally:
        logger.setLevel(before)
        task.tqdm = drawn
