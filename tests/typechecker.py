"""What holds annotations against values in the tests: beartype, to which an int is a float too, as to mypy."""

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype

F = TypeVar("F", bound=Callable)

_hold: Callable[[Callable], Callable] = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: F) -> F:
    """The function with its checks; but a constructor without shapes says itself what is wrong with settings."""
    if function.__name__ == "__init__" and "jaxtyping." not in str(function.__annotations__):
        return function
    return _hold(function)
