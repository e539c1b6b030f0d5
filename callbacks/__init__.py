"""Lightning callbacks of dirl: rollouts, evaluation, export."""

from dirl.callbacks.evaluation import Evaluate
from dirl.callbacks.export import Export
from dirl.callbacks.rollout import Rollout

__all__ = ["Evaluate", "Export", "Rollout"]
