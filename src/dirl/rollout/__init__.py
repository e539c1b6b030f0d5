"""Rollouts: engines that turn requests into trajectories, all behind one protocol."""

from dirl.rollout.engine import RolloutEngine
from dirl.rollout.replay_engine import ReplayEngine
from dirl.rollout.torch_engine import TorchEngine

__all__ = ["ReplayEngine", "RolloutEngine", "TorchEngine"]
