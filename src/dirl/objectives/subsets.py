"""A random part of a step's views and trajectories, weighed so that the loss keeps its expectation.

The loss of most objectives is a sum over views, and over trajectories. A part of its terms, each divided by the
probability of being in the part (Horvitz and Thompson, 1952), has the same expectation, and so has its gradient; the
tokens of what is left out are spared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ViewChoice = Literal["uniform", "weighted"]
EVEN = 0.1
"""The share of the draw of `weighted` that is uniform, so that no weight exceeds ten times the uniform one."""


@dataclass(frozen=True)
class Subset:
    """How much of a step is learned from.

    Args:
        view_fraction: of the noised views of a step.
        trajectory_fraction: of the trajectories of each group.
        view_choice: `uniform`, or `weighted` by |advantage| times the surprise -log p of the view's tokens when they
            were sampled, whose expectation is the entropy.
    """

    view_fraction: float = 1.0
    trajectory_fraction: float = 1.0
    view_choice: ViewChoice = "uniform"

    def __post_init__(self) -> None:
        for name in ("view_fraction", "trajectory_fraction"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"objective.{name}={value!r}: use a number above 0, up to 1")
        if self.view_choice not in ("uniform", "weighted"):
            raise ValueError(f"objective.view_choice={self.view_choice!r}: use uniform or weighted")

    def of_trajectories(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count] weight of each member of a group, 0 for those that are left out."""
        return drawn_weights(np.full(count, self.trajectory_fraction), rng)

    def of_views(self, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[V] weight of each view of a step, 0 for those that are left out.

        Args:
            scores: [V] not negative: what `weighted` is by.
        """
        if self.view_choice == "uniform":
            return drawn_weights(np.full(len(scores), self.view_fraction), rng)
        return drawn_weights(inclusion(scores, self.view_fraction), rng)


EVERYTHING = Subset()


def inclusion(scores: np.ndarray, fraction: float) -> np.ndarray:
    """Probabilities [V] in proportion to the scores, an even share apart, at most 1 each and `fraction` in the mean."""
    mean = scores.mean() if len(scores) else 0.0
    sizes = np.ones(len(scores)) if mean == 0 else (1 - EVEN) * scores / mean + EVEN
    wanted = fraction * len(scores)
    certain = np.zeros(len(scores), dtype=bool)
    while True:
        left = wanted - certain.sum()
        found = np.where(certain, 1.0, left * sizes / max(sizes[~certain].sum(), 1e-300))
        over = (found > 1) & ~certain
        if not over.any():
            return found
        certain |= over


def drawn_weights(probabilities: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N] one over the probability for what is drawn, 0 for the rest; their number is their sum, rounded up or down.

    Systematic sampling in random order: each is drawn with exactly its probability.
    """
    chance = np.asarray(probabilities, dtype=np.float64)
    if (chance >= 1).all():
        return np.ones(len(chance))
    order = rng.permutation(len(chance))
    drawn = np.empty(len(chance), dtype=bool)
    drawn[order] = systematic(chance[order], rng.random())
    return np.where(drawn, 1 / chance, 0.0)


def systematic(chance: np.ndarray, start: float) -> np.ndarray:
    """[N] which are drawn: those whose stretch of the running sum of probabilities has start + a whole number in it.

    Each is drawn with its probability if start is uniform in [0, 1).
    """
    return np.diff(np.floor(np.append(0.0, chance.cumsum()) + start)) > 0
