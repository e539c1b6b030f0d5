"""The model: transformers' Qwen3 backbone under a block mask, scored at chosen positions."""

from dirl.models.policy import BlockDiffusionLM, Scores
from dirl.models.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM, register_models
from dirl.models.source import ModelDescription, ModelSource, NewModel, PretrainedModel, save_model

__all__ = [
    "BlockDiffusionLM",
    "ModelDescription",
    "ModelSource",
    "NewModel",
    "PretrainedModel",
    "SDARConfig",
    "SDARForCausalLM",
    "SDARMoeConfig",
    "SDARMoeForCausalLM",
    "Scores",
    "register_models",
    "save_model",
]
