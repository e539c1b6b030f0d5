"""Settings that a resumed run must share with the one before, and those that may change if it is said."""

from collections.abc import Mapping
from typing import Any


def check_same(section: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError naming every setting that differs, with both values.

    Args:
        section: of the config, for the message.
        now: the names that are compared, each in both; `train` is a digest of the data, of which no value is said.
    """
    changed = [name for name in now if saved.get(name) != now[name]]
    if changed:
        differences = "; ".join(
            f"{section}.{name} holds other rows than it did, or in another order"
            if name == "train"
            else f"{section}.{name} was {saved.get(name)!r}, is {now[name]!r}"
            for name in changed
        )
        raise ValueError(
            f"the run cannot go on from its checkpoint with other settings: {differences}. Resume with those of the "
            "checkpoint, or start a new run from its exported model"
        )
