"""Lightning callbacks of dirl: rollouts, evaluation, export, throughput."""

from dirl.callbacks.evaluation import Evaluate
from dirl.callbacks.export import Export
from dirl.callbacks.rollout import Rollout
from dirl.callbacks.throughput import Throughput

__all__ = ["Evaluate", "Export", "Rollout", "Throughput"]
