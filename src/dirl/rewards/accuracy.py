"""Rewards for a correct final answer."""

import re
from abc import abstractmethod
from typing import ClassVar

from dirl.rewards.base import Incomparable, Reward, RewardSample
from dirl.rewards.math_answers import (
    bare_answer,
    bare_truth,
    boxes,
    judge,
    last_boxed,
    last_list,
    load_comparison,
    voted_answer,
)
from dirl.rewards.verdict import Verdict


class MathReward(Reward):
    """Base of the rewards that compare answers with math-verify.

    A response that was cut (L >= M) is wrong. So is an answer that cannot be compared, or not within the limit.
    """

    judges: ClassVar[bool] = True
    votes = "value"
    cpu_limit_s: ClassVar[float | None] = 3.0

    def prepare(self) -> None:
        load_comparison()

    def answer(self, response: str) -> str | None:
        return voted_answer(response)

    @abstractmethod
    def value(self, sample: RewardSample, correct: bool) -> float:
        """The reward of a correct or a wrong response."""

    def __call__(self, sample: RewardSample) -> float:
        verdict = Verdict.WRONG if sample.cut else judge(sample)
        value = self.value(sample, verdict is Verdict.RIGHT)
        return Incomparable(value) if verdict is Verdict.INCOMPARABLE else value

    def if_incomparable(self, sample: RewardSample) -> float:
        return self.value(sample, correct=False)


class Accuracy(MathReward):
    """1 if the boxed answer equals the ground truth, else 0; also 0 if the response was cut (L >= M)."""

    def value(self, sample: RewardSample, correct: bool) -> float:
        return float(correct)


class BinaryAccuracy(MathReward):
    """+1 if the boxed answer equals the ground truth, else -1; also -1 if the response was cut (L >= M)."""

    def value(self, sample: RewardSample, correct: bool) -> float:
        return 1.0 if correct else -1.0


class ExactAnswer(Reward):
    """1 if the boxed answer is the ground truth, letter for letter, else 0.

    For tasks whose answers are canonical strings: it needs neither sympy nor a worker. Blanks at both ends
    and the math delimiters around either answer do not count. Of a ground truth in GSM8K's form what follows `####`
    is the answer, in which commas between digits do not count.
    """

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = True
    votes = "value"

    def answer(self, response: str) -> str | None:
        return voted_answer(response)

    def __call__(self, sample: RewardSample) -> float:
        truth, answer = bare_truth(sample.ground_truth), last_boxed(sample.response)
        if answer is None:
            return 0.0
        answers = {bare_answer(answer), ", ".join(last_list(sample.response))}
        if len(boxes(sample.ground_truth)) > 1:  # all of them, in any order
            return float(any(_listed(answer) == _listed(truth) for answer in answers))
        if "####" in sample.ground_truth:
            answers = {re.sub(r"(?<=\d),(?=\d{3})", "", answer) for answer in answers}
        return float(truth in answers)


def _listed(text: str) -> list[str]:
    return sorted(part.strip() for part in text.split(","))
