"""Numbers that are not finite are faults: whoever finds one says where, and no file holds one."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Shaped
from torch import Tensor


class NotFiniteError(ValueError):
    """A NaN or an infinity where there can be none; the message says where."""


def dumps(value: Any, what: str, **options: Any) -> str:
    """JSON, of which NaN and the infinities are no part: NotFiniteError names the field.

    Args:
        what: the file or thing that the value goes to, for the message.
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        found = first_not_finite(value)
        if found is None:  # something else is wrong with it
            raise
        raise NotFiniteError(f"{what}: {found}, which is not written; look for where it came from") from error


def first_not_finite(value: Any, name: str = "") -> str | None:
    """`a.b[3] is nan` for the first number that is not finite in mappings and sequences of any depth; None: all are."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{name} is {value}"
    found = (first_not_finite(child, child_name) for child_name, child in _children(value, name))
    return next((text for text in found if text is not None), None)


def _children(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{name}.{key}" if name else str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)) and not _all_finite(value):
        yield from ((f"{name}[{i}]", child) for i, child in enumerate(value))


def _all_finite(values: list | tuple) -> bool:
    """True if all are finite numbers, found without a turn of the interpreter for each; False: not sure."""
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # not numbers, or integers that no float can hold
        return False


def check_weight(name: str, value: Shaped[Tensor, "*any"], where: str, remedy: str) -> Shaped[Tensor, "*any"]:
    """The value; NotFiniteError if a number in it is not finite.

    One sum tells that all are (an infinity or a NaN never adds up to a finite number), so nothing of its size is made.
    """
    if value.is_floating_point() and not value.sum().isfinite():
        wrong = int((~value.isfinite()).sum())
        if wrong:  # else the sum alone is too large
            raise NotFiniteError(
                f"{where}: weight {name} holds numbers that are not finite ({wrong} of {value.numel()}): {remedy}"
            )
    return value
