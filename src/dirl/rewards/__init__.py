"""Rewards: what a response is worth. Any subclass of `Reward` can be named by `class_path` in a config.

Nothing here imports torch: worker processes load this package and must start quickly.
"""

from dirl.rewards.accuracy import Accuracy, BinaryAccuracy, ExactAnswer
from dirl.rewards.base import Incomparable, Reward, RewardSample
from dirl.rewards.call import RewardError
from dirl.rewards.code import UnitTests
from dirl.rewards.format import Boxed, Format, ThinkFormat
from dirl.rewards.length import Cosine, Length, SoftOverlong
from dirl.rewards.puzzles import Countdown, Sudoku4
from dirl.rewards.reasoning_gym import ReasoningGym, ReasoningGymScore
from dirl.rewards.repetition import Repetition
from dirl.rewards.scorer import RewardResult, Scorer, ScoreReport
from dirl.rewards.speed import Speed, SpeedPenalty

__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "Boxed",
    "Cosine",
    "Countdown",
    "ExactAnswer",
    "Format",
    "Incomparable",
    "Length",
    "ReasoningGym",
    "ReasoningGymScore",
    "Repetition",
    "Reward",
    "RewardError",
    "RewardResult",
    "RewardSample",
    "ScoreReport",
    "Scorer",
    "SoftOverlong",
    "Speed",
    "SpeedPenalty",
    "Sudoku4",
    "ThinkFormat",
    "UnitTests",
]
