"""The model: a backbone of transformers under a block mask, scored at chosen positions."""

from dirl.models.autoregressive import AutoregressiveModel
from dirl.models.export import export_model, save_model
from dirl.models.families import ModelFamily, family_of, register_family, register_models
from dirl.models.families.qwen3 import SDARConfig, SDARForCausalLM
from dirl.models.families.qwen3_moe import SDARMoeConfig, SDARMoeForCausalLM
from dirl.models.new_model import NewModel
from dirl.models.policy import BlockDiffusionLM, Scores
from dirl.models.shape import ModelShape
from dirl.models.source import ModelDescription, ModelSource, PretrainedModel

__all__ = [
    "AutoregressiveModel",
    "BlockDiffusionLM",
    "ModelDescription",
    "ModelFamily",
    "ModelShape",
    "ModelSource",
    "NewModel",
    "PretrainedModel",
    "SDARConfig",
    "SDARForCausalLM",
    "SDARMoeConfig",
    "SDARMoeForCausalLM",
    "Scores",
    "export_model",
    "family_of",
    "register_family",
    "register_models",
    "save_model",
]
