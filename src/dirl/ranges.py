"""Ranges of options: an error names the option, its value and what it may be."""

import math


def at_least(least: float, owner: str, **values: float | None) -> None:
    """Raise ValueError for a value that is below `least`, or not finite; None is no value."""
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{owner}.{name}={value}: use a finite number that is at least {least:g}")


def positive(owner: str, **values: float | None) -> None:
    """Raise ValueError for a value that is not above 0 and finite; None is no value."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{owner}.{name}={value}: use a positive, finite number")
