"""What an RL step learns from trajectories: one algorithm, one file."""

from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.best_of_group import BestOfGroup
from dirl.objectives.block_elbo import BlockELBO
from dirl.objectives.coupled import Coupled
from dirl.objectives.dipo import DiPO
from dirl.objectives.leftmost import Leftmost
from dirl.objectives.lightning_rl import LightningRL
from dirl.objectives.normalization import Normalization
from dirl.objectives.one_step import OneStep
from dirl.objectives.policy_gradient import PolicyGradient
from dirl.objectives.scored import ScoredRow
from dirl.objectives.spg import SPG
from dirl.objectives.stable_drl import StableDRL
from dirl.objectives.tracerl import TraceRL
from dirl.objectives.wd1 import WD1

__all__ = [
    "SPG",
    "WD1",
    "BestOfGroup",
    "BlockELBO",
    "Coupled",
    "DiPO",
    "Leftmost",
    "LightningRL",
    "Normalization",
    "Objective",
    "OneStep",
    "PolicyGradient",
    "RowLoss",
    "ScoredRow",
    "StableDRL",
    "TraceRL",
]
