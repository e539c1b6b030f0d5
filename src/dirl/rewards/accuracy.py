"""Rewards for a correct final answer."""

from typing import ClassVar

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.math_answers import bare_answer, is_correct, last_boxed, load_math_verify


class MathReward(Reward):
    """Base of the rewards that compare answers with math-verify."""

    def prepare(self) -> None:
        load_math_verify()


class Accuracy(MathReward):
    """1 if the boxed answer equals the ground truth, else 0; also 0 if the response was cut (L >= M)."""

    def __call__(self, sample: RewardSample) -> float:
        return float(not sample.cut and is_correct(sample))


class BinaryAccuracy(MathReward):
    """+1 if the boxed answer equals the ground truth, else -1."""

    def __call__(self, sample: RewardSample) -> float:
        return 1.0 if is_correct(sample) else -1.0


class ExactAnswer(Reward):
    """1 if the boxed answer is the ground truth, letter for letter, else 0.

    For tasks whose answers are canonical strings: it needs neither sympy nor a worker. Blanks at both ends
    and the math delimiters around either answer do not count.
    """

    in_process: ClassVar[bool] = True

    def __call__(self, sample: RewardSample) -> float:
        truth = bare_answer(sample.ground_truth)
        if not truth:
            raise ValueError("ground_truth is empty; give the question an answer or leave it out of the data")
        answer = last_boxed(sample.response)
        return float(answer is not None and bare_answer(answer) == truth)
