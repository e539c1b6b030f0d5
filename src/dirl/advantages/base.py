"""The contract of advantages: what the rewards of a group say of each of its trajectories."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from dirl.types import ModelSpec, Trajectory, rewards_of


class Advantage(ABC):
    """How much better each trajectory is than the others of its group.

    One is called with the G trajectories of one prompt, whose `reward` (the weighted sum), `rewards` (by name),
    `correct`, `response_length` and step map are known, and returns a finite number for each, in their order. A
    trajectory of positive advantage becomes more likely, one of negative advantage less; 0 teaches nothing. It runs
    once for each group that a rollout keeps, on the process that made it, and knows no other group.

    A subclass is chosen by `rollout.advantage: {class_path: ..., init_args: ...}`; what its constructor takes are its
    options. A group without spread (`has_spread`) should get zeros: its deviations are rounding.

    >>> from dirl.advantages import Mean
    >>> Mean().of_rewards([1.0, 0.0])
    [0.5, -0.5]
    """

    def setup(self, spec: ModelSpec) -> None:  # noqa: B027 - most need not know the model
        """Told of the model before the first group."""

    @abstractmethod
    def __call__(self, group: Sequence[Trajectory]) -> list[float]:
        """One advantage a trajectory."""

    def teaches(self, group: Sequence[Trajectory], degrees: Sequence[float]) -> bool:
        """Whether dynamic sampling keeps the group: some of it is right and some wrong, and the rewards say so.

        Args:
            degrees: of correctness, one a trajectory: 0 or 1 where a reward judges.
        """
        return has_spread(degrees) and has_spread(rewards_of(group))


class OfRewards(Advantage):
    """An advantage of the total rewards alone; zeros for a group without spread."""

    def __call__(self, group: Sequence[Trajectory]) -> list[float]:
        return self.of_rewards(rewards_of(group))

    def of_rewards(self, rewards: Sequence[float]) -> list[float]:
        values = np.asarray(rewards, dtype=np.float64)
        return self.compare(values).tolist() if has_spread(rewards) else [0.0] * len(values)

    @abstractmethod
    def compare(self, rewards: np.ndarray) -> np.ndarray:
        """[G] rewards with spread -> [G] advantages, in double precision."""


def has_spread(rewards: Sequence[float]) -> bool:
    """Whether the rewards differ by more than rounding: a group of equals teaches nothing."""
    values = np.asarray(rewards, dtype=np.float64)
    return bool(np.ptp(values) > 1e-9 * max(1.0, np.abs(values).max()))
