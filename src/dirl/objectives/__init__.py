"""What an RL step learns from trajectories: one algorithm, one file."""

from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.coupled import Coupled
from dirl.objectives.dipo import DiPO
from dirl.objectives.leftmost import Leftmost
from dirl.objectives.normalization import Normalization
from dirl.objectives.one_step import OneStep
from dirl.objectives.policy_gradient import PolicyGradient
from dirl.objectives.scored import ScoredRow
from dirl.objectives.tracerl import TraceRL

__all__ = [
    "Coupled",
    "DiPO",
    "Leftmost",
    "Normalization",
    "Objective",
    "OneStep",
    "PolicyGradient",
    "RowLoss",
    "ScoredRow",
    "TraceRL",
]
