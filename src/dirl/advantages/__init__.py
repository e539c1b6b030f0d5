"""Advantages: one rule, one file; `rollout.advantage` chooses one by `class_path`."""

from dirl.advantages.base import Advantage, has_spread
from dirl.advantages.leave_one_out import LeaveOneOut
from dirl.advantages.lightning_rl import LightningRL
from dirl.advantages.mean import Mean
from dirl.advantages.zscore import ZScore

__all__ = ["Advantage", "LeaveOneOut", "LightningRL", "Mean", "ZScore", "has_spread"]
