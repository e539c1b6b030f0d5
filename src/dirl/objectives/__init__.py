"""What an RL step learns from trajectories: one algorithm, one file."""

from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.dipo import DiPO
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import PolicyGradient
from dirl.objectives.scored import ScoredRow
from dirl.objectives.tracerl import TraceRL

__all__ = ["DiPO", "Normalization", "Objective", "PolicyGradient", "RowLoss", "ScoredRow", "TraceRL"]
