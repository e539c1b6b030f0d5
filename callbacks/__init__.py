"""Lightning callbacks of dirl: rollouts, evaluation, samples, checkpoints, export, throughput, the guard of a run."""

from dirl.callbacks.checkpoint import Checkpoint
from dirl.callbacks.evaluation import Evaluate
from dirl.callbacks.export import Export
from dirl.callbacks.guard import Guard
from dirl.callbacks.rollout import Rollout
from dirl.callbacks.samples import Samples
from dirl.callbacks.throughput import Throughput

__all__ = ["Checkpoint", "Evaluate", "Export", "Guard", "Rollout", "Samples", "Throughput"]
