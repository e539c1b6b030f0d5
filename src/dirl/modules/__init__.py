"""The LightningModules: one optimizer step per batch, any number of micro-batches inside it."""

from dirl.modules.base import BlockDiffusionModule
from dirl.modules.optimization import OptimizerConfig
from dirl.modules.rl import RLModule
from dirl.modules.sft import SFTModule

__all__ = ["BlockDiffusionModule", "OptimizerConfig", "RLModule", "SFTModule"]
