"""Errors of a run as a whole, and what is known of them when they end it."""

from pathlib import Path
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class ForUserError(Exception):
    """Raised on purpose: its message is all that whoever runs dirl needs, without a traceback."""


class OtherProcessError(ForUserError, RuntimeError):
    """Another process of this run failed; the message says which, and why."""


class NothingToLearnError(ValueError):
    """Rollout after rollout brings nothing that a policy could learn from."""


def together(error: E) -> E:
    """Mark an error that all processes raise at the same place: they can still write a checkpoint together."""
    error.together = True
    return error


def is_together(error: BaseException) -> bool:
    return getattr(error, "together", False)


def saved(error: E, path: Path) -> E:
    """Mark an error with the checkpoint that was written because of it."""
    error.resume_from = path
    return error


def saved_at(error: BaseException) -> Path | None:
    return getattr(error, "resume_from", None)
