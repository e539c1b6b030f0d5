"""LightningRL's advantage (arXiv:2603.13319): being right and being fast, each compared within the group on its own."""

import math
from collections.abc import Sequence

import numpy as np

from dirl.advantages.base import Advantage, has_spread
from dirl.advantages.zscore import ZScore
from dirl.types import ModelSpec, Trajectory


class LightningRL(Advantage):
    """z(correct) + speed_weight z(tokens per step), with the mean and population deviation of the group for each.

    Tokens per step are the response tokens over the denoising steps. On its own scale neither drowns the other: among
    answers that are all right the faster ones are better, among equally fast ones the right ones. The `reward` is not
    looked at. With dynamic sampling, groups that are all wrong and groups of one speed are dropped, as there; groups
    that are all right are kept for their speeds. The published code divides the sum once more by its deviation over the
    batch, which an advantage does not know; here it is left as it is.

    Args:
        speed_weight: of the second term; 0: accuracy alone.
        min_speed_spread: tokens per step by which the fastest must exceed the slowest; in a group of less, speed counts
            as one.
    """

    def __init__(self, speed_weight: float = 1.0, min_speed_spread: float = 0.01) -> None:
        for name, value in (("speed_weight", speed_weight), ("min_speed_spread", min_speed_spread)):
            if not 0 <= value < math.inf:
                raise ValueError(f"rollout.advantage.{name}={value!r}: use a finite number that is not negative")
        self.speed_weight, self.min_speed_spread = speed_weight, min_speed_spread
        self.block_size: int | None = None

    def setup(self, spec: ModelSpec) -> None:
        self.block_size = spec.block_size

    def __call__(self, group: Sequence[Trajectory]) -> list[float]:
        speeds = self._speeds(group)
        of_speed = ZScore().of_rewards(speeds) if self._differ(speeds) else [0.0] * len(group)
        of_correct = ZScore().of_rewards(_correct(group))
        return [a + self.speed_weight * b for a, b in zip(of_correct, of_speed, strict=True)]

    def teaches(self, group: Sequence[Trajectory], degrees: Sequence[float]) -> bool:
        return any(_correct(group)) and self._differ(self._speeds(group))

    def _speeds(self, group: Sequence[Trajectory]) -> list[float]:
        """Response tokens per denoising step, of each trajectory."""
        assert self.block_size is not None, "`setup` says how long a block is"
        return [t.response_length / t.denoising_steps(self.block_size) for t in group]

    def _differ(self, speeds: Sequence[float]) -> bool:
        return has_spread(speeds) and bool(np.ptp(speeds) >= self.min_speed_spread)


def _correct(group: Sequence[Trajectory]) -> list[float]:
    """1 where the response is right, else 0."""
    assert all(t.correct is not None for t in group), "a trajectory that has not been judged"
    return [float(bool(t.correct)) for t in group]
