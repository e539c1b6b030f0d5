"""Group-relative advantages (GRPO): the rewards of one prompt's responses against one another."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

AdvantageMode = Literal["zscore", "mean"]


def group_advantages(rewards: Sequence[float], mode: AdvantageMode = "zscore") -> list[float]:
    """One advantage per reward: minus the group's mean and, for `zscore`, over its population std.

    A group without spread has advantage 0 throughout.
    """
    if mode not in ("zscore", "mean"):
        raise ValueError(f"advantage={mode!r}: use zscore or mean")
    values = np.asarray(rewards, dtype=np.float64)
    if not has_spread(rewards):
        return [0.0] * len(values)
    centred = values - values.mean()
    if mode == "zscore":
        centred = centred / values.std()
    return centred.tolist()


def has_spread(rewards: Sequence[float]) -> bool:
    """Whether the rewards differ by more than rounding: a group of equals teaches nothing."""
    values = np.asarray(rewards, dtype=np.float64)
    return bool(np.ptp(values) > 1e-9 * max(1.0, np.abs(values).max()))
