"""The LightningModules: one optimizer step per batch, any number of micro-batches inside it."""

from dirl.modules.base import BlockDiffusionModule
from dirl.modules.dipo import DiPOModule
from dirl.modules.optimization import OptimizerConfig
from dirl.modules.sft import SFTModule

__all__ = ["BlockDiffusionModule", "DiPOModule", "OptimizerConfig", "SFTModule"]
