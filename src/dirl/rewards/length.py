"""Rewards for the length of a response: L tokens out of M allowed."""

import math
from typing import ClassVar

from dirl.rewards.accuracy import MathReward
from dirl.rewards.base import Reward, RewardSample


class Cosine(MathReward):
    """Correct: 1.0 at L = 0 down to 0.5 at L = M. Wrong: -0.5 up to 0.0. Cut (L >= M): -0.5.

    The way between the two ends is (1 - cos(pi L / M)) / 2: short right answers are worth most, and a wrong
    one loses less the more it has tried.
    """

    def value(self, sample: RewardSample, correct: bool) -> float:
        if sample.cut:
            return -0.5
        progress = half_cosine(sample.response_length / sample.max_response_tokens)
        return 1.0 - 0.5 * progress if correct else -0.5 + 0.5 * progress


class SoftOverlong(Reward):
    """min((M - C - L) / C, 0): free up to M - C tokens, then falling to -1 at M.

    Args:
        cache: C, the number of tokens before the limit over which the penalty grows; None: M / 2.
    """

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = False

    def __init__(self, cache: int | None = None, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if cache is not None and cache < 1:
            raise ValueError(f"cache={cache} of SoftOverlong must be at least 1 token, or null for half the limit")
        self.cache = cache

    def __call__(self, sample: RewardSample) -> float:
        limit = sample.max_response_tokens
        cache = limit / 2 if self.cache is None else self.cache
        if cache > limit:
            raise ValueError(f"cache={cache} of SoftOverlong exceeds max_response_tokens={limit}; make it smaller")
        return min((limit - cache - sample.response_length) / cache, 0.0)


class Length(Reward):
    """L / M: the longer the better, but 0 if the response was cut (L >= M)."""

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = False

    def __call__(self, sample: RewardSample) -> float:
        return 0.0 if sample.cut else sample.response_length / sample.max_response_tokens


def half_cosine(x: float) -> float:
    """A curve from 0 at x = 0 to 1 at x = 1 that is flat at both ends."""
    return (1.0 - math.cos(math.pi * x)) / 2.0
