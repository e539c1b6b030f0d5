"""Rollouts: engines that turn requests into trajectories, all behind one protocol."""

from dirl.rollout.engine import RolloutEngine
from dirl.rollout.lmdeploy_engine import LMDeployEngine
from dirl.rollout.replay_engine import ReplayEngine
from dirl.rollout.server_engine import ServerEngine
from dirl.rollout.torch_engine import TorchEngine

__all__ = ["LMDeployEngine", "ReplayEngine", "RolloutEngine", "ServerEngine", "TorchEngine"]
