"""Penalty for repeating oneself."""

from typing import ClassVar

from dirl.rewards.base import Reward, RewardSample


class Repetition(Reward):
    """-(1 - distinct / all n-grams) of the words: 0 without a repetition, towards -1 for a loop.

    Words are what blanks separate, in lower case. A response of fewer than n words has no n-gram: 0.

    Args:
        ngram_size: n.
    """

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = False

    def __init__(self, ngram_size: int = 3, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if ngram_size < 1:
            raise ValueError(f"ngram_size={ngram_size} of Repetition must be at least 1")
        self.ngram_size = ngram_size

    def __call__(self, sample: RewardSample) -> float:
        words = sample.response.lower().split()
        ngrams = list(zip(*(words[i:] for i in range(self.ngram_size)), strict=False))
        return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0
