"""The model: transformers' Qwen3 backbone under a block mask, scored at chosen positions."""

from dirl.models.export import export_model, save_model
from dirl.models.policy import BlockDiffusionLM, Scores
from dirl.models.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM, register_models
from dirl.models.source import ModelDescription, ModelSource, NewModel, PretrainedModel

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
    "export_model",
    "register_models",
    "save_model",
]
