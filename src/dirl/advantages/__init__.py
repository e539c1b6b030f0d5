"""Advantages: one rule, one file; `rollout.advantage` chooses one by `class_path`."""

from dirl.advantages.base import Advantage, has_spread
from dirl.advantages.mean import Mean
from dirl.advantages.zscore import ZScore

__all__ = ["Advantage", "Mean", "ZScore", "has_spread"]
