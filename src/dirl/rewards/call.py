"""The call of one reward for one sample, with a check of what it returns, and the error that names both."""

import math
import numbers

from dirl.errors import ForUserError
from dirl.rewards.base import Incomparable, Reward, RewardSample

SHOWN = 300
"""Characters of question and response that an error shows."""


class RewardError(ForUserError, RuntimeError):
    """A reward that raised, hung, died or gave no finite number."""

    reward: str
    key: tuple[str, int]

    @classmethod
    def of(cls, reward: Reward, sample: RewardSample, cause: str, details: str = "") -> "RewardError":
        """The error of this reward on this sample; `cause` is a line, `details` are shown below it."""
        error = cls(
            f"reward {reward.name!r} failed on prompt_id={sample.prompt_id!r} sample_index={sample.sample_index}: "
            f"{cause}\n  question: {_cut(sample.question)}\n  response: {_cut(sample.response)}"
            + (f"\n{details.rstrip()}" if details else "")
        )
        error.reward, error.key = reward.name, sample.key
        return error


def call_reward(reward: Reward, sample: RewardSample) -> float:
    """Return the reward as a float, or as the `Incomparable` that it is; ValueError unless it is a finite number."""
    value = reward(sample)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"it returned {value!r} ({type(value).__name__}); a reward must be a finite number")
    return value if isinstance(value, Incomparable) else float(value)


def summary(error: BaseException) -> str:
    """One line that names an exception."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cut(text: str) -> str:
    return repr(text) if len(text) <= SHOWN else f"{text[: SHOWN // 2]!r} ... {text[-SHOWN // 2 :]!r}"
