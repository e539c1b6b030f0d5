"""Rollouts: engines that turn requests into trajectories, all behind one protocol."""

from dirl.rollout.engine import RolloutEngine
from dirl.rollout.lmdeploy.engine import LMDeployEngine
from dirl.rollout.remote.engine import ServerEngine
from dirl.rollout.replay import ReplayEngine
from dirl.rollout.torch.engine import TorchEngine

__all__ = ["LMDeployEngine", "ReplayEngine", "RolloutEngine", "ServerEngine", "TorchEngine"]
