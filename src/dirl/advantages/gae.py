"""GAE along the trace: what each token is worth by a value model, from the outcome of its trajectory.

TraceRL (arXiv:2509.06949), section 4.2: the tokens that a denoising step commits are one action. With the value V_j of
each token, at the state before its step t_j, and means over the tokens of a step

    V*_t = mean V_j,  r*_t = mean r_j          r_j is the outcome for the tokens of the last step, and 0 before it
    R*_t = r*_t + gamma R*_{t+1}
    A*_t = r*_t - V*_t + gamma V*_{t+1} + gamma lambda A*_{t+1}

a token's return and advantage are

    R_j = r_j + gamma R*_{t_j + 1}
    A_j = r_j - V_j + gamma V*_{t_j + 1} + gamma lambda A*_{t_j + 1}

With gamma = lambda = 1 these are the outcome, and the outcome less V_j.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dirl.types import Trajectory

Outcome = Literal["advantage", "reward"]


@dataclass(frozen=True)
class GAE:
    """How an objective makes use of values.

    Args:
        gamma: discount of a denoising step.
        lam: lambda, from 0 (the next step's value stands for all that follows) to 1 (the outcome alone does).
        value_clip: the value may move so far from the old one within an epoch before its loss is constant; None: as
            far as it will.
        outcome: what is predicted: `advantage` is what `rollout.advantage` makes of the group's rewards (the paper's
            standardised reward), `reward` the reward itself.
    """

    gamma: float = 1.0
    lam: float = 1.0
    value_clip: float | None = 0.2
    outcome: Outcome = "advantage"

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name}={getattr(self, name)!r}: use a number in [0, 1]")
        if self.value_clip is not None and not 0 < self.value_clip < math.inf:
            raise ValueError(f"objective.value_clip={self.value_clip!r}: use a positive number, or null for no clip")
        if self.outcome not in ("advantage", "reward"):
            raise ValueError(f"objective.outcome={self.outcome!r}: use advantage or reward")

    def outcome_of(self, trajectory: Trajectory) -> float:
        value = trajectory.reward if self.outcome == "reward" else trajectory.advantage
        return 0.0 if value is None else value


class Credit(NamedTuple):
    """[N] of each token, in double precision."""

    advantages: np.ndarray
    returns: np.ndarray


def credit(
    trajectories: np.ndarray, steps: np.ndarray, values: np.ndarray, outcomes: np.ndarray, gamma: float, lam: float
) -> Credit:
    """The equations above for the scored tokens of many trajectories, in any order.

    Args:
        trajectories: [N] which trajectory a token is of.
        steps: [N, K] its denoising step, by numbers of which the first counts most: (block, view).
        values: [N] of the old value model.
        outcomes: [N] of the token's trajectory.
    """
    if not len(values):
        return Credit(np.zeros(0), np.zeros(0))
    values, outcomes = values.astype(np.float64), outcomes.astype(np.float64)
    distinct, step = np.unique(np.column_stack([trajectories, steps]), axis=0, return_inverse=True)
    step = step.ravel()
    starts = np.flatnonzero(np.diff(distinct[:, 0], prepend=distinct[0, 0] - 1))
    counts = np.diff(np.append(starts, len(distinct)))
    row, place = np.repeat(np.arange(len(counts)), counts), np.arange(len(distinct)) - np.repeat(starts, counts)

    last = place[step] == counts[row[step]] - 1
    rewards = np.where(last, outcomes, 0.0)
    value, reward = (_table(each, step, row, place) for each in (values, rewards))  # [J, T + 1], 0 beyond the last step
    returns, advantages = np.zeros_like(value), np.zeros_like(value)
    for t in range(value.shape[1] - 2, -1, -1):  # a shorter trajectory is 0 beyond its end, and stays so
        returns[:, t] = reward[:, t] + gamma * returns[:, t + 1]
        delta = reward[:, t] - value[:, t] + gamma * value[:, t + 1]
        advantages[:, t] = delta + gamma * lam * advantages[:, t + 1]
    after = row[step], place[step] + 1
    return Credit(
        advantages=rewards - values + gamma * value[after] + gamma * lam * advantages[after],
        returns=rewards + gamma * returns[after],
    )


def _table(numbers: np.ndarray, step: np.ndarray, row: np.ndarray, place: np.ndarray) -> np.ndarray:
    """[J, T + 1] means over the tokens of each step."""
    table = np.zeros((row[-1] + 1, place.max() + 2))
    table[row, place] = np.bincount(step, numbers) / np.bincount(step)
    return table
