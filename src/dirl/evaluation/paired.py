"""Whether two runs differ on the same problems: an exact sign-flip test, and an interval of the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np

from dirl.evaluation.intervals import intervals
from dirl.evaluation.problems import Problem


@dataclass(frozen=True)
class Paired:
    """What the second run gains over the first, on the problems that both have."""

    problems: int
    difference: float
    """The difference of the accuracies, second minus first."""
    low: float | None
    high: float | None
    """Paired bootstrap interval of the difference; None: fewer than two problems."""
    better: int
    worse: int
    """Problems on which the second run is right more, or less, often."""
    p_value: float
    """Two-sided: how often a difference as large comes about if each problem's results may change places."""


def paired(first: Sequence[Problem], second: Sequence[Problem], resamples: int = 1000, seed: int = 0) -> Paired:
    """Compare the accuracies of two runs; ValueError unless they are of the same problems."""
    check_same_problems(first, second)
    others = {problem.prompt_id: problem for problem in second}
    gains = [_accuracy(others[problem.prompt_id]) - _accuracy(problem) for problem in first]
    found = np.array([[float(gain)] for gain in gains])
    bounds = intervals(found, np.ones_like(found), resamples, seed)[0] or (None, None)
    return Paired(
        problems=len(gains),
        difference=float(sum(gains) / len(gains)),
        low=bounds[0],
        high=bounds[1],
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
        p_value=sign_flip_p_value(gains),
    )


def check_same_problems(first: Sequence[Problem], second: Sequence[Problem]) -> None:
    """Raise ValueError, with the first problem that differs, unless both runs have the same."""
    asked, others = _asked(first), _asked(second)
    different = [name for name in {**asked, **others} if asked.get(name) != others.get(name)]
    if different or not asked:
        named = f"{len(different)} differ, the first: prompt {different[0]!r}" if different else "there are none"
        raise ValueError(
            f"the two runs are not of the same problems ({len(asked)} and {len(others)}, {named}): compare runs of one "
            "task with the same data and limits"
        )


def sign_flip_p_value(gains: Sequence[Fraction]) -> float:
    """Exact: the share of all 2^n ways to change signs whose sum is as far from 0 as the one observed.

    Where all gains that are not 0 are of one size, as with one response a problem, this is McNemar's exact test.
    """
    unit = lcm(*(gain.denominator for gain in gains)) if gains else 1
    sizes = [abs(int(gain * unit)) for gain in gains if gain]
    observed, reach = abs(int(sum(gains) * unit)), sum(sizes)
    chances = np.zeros(2 * reach + 1)  # of each sum from -reach to reach
    chances[reach] = 1.0
    for size in sizes:
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2  # what would go round is 0 until the end
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[sums >= observed].sum()))


def _accuracy(problem: Problem) -> Fraction:
    return Fraction(sum(response.right for response in problem.responses), len(problem.responses))


def _asked(problems: Sequence[Problem]) -> Mapping[str, tuple[str, str]]:
    return {problem.prompt_id: (problem.question, problem.ground_truth) for problem in problems}
