"""An engine with the weights of a source, for the commands that train nothing."""

import torch

from dirl.models import ModelDescription, ModelSource
from dirl.models.autoregressive import check_fills_masks
from dirl.rollout import RolloutEngine


def load_engine(
    engine: RolloutEngine, source: ModelSource, description: ModelDescription | None = None
) -> ModelDescription:
    """Set the engine up for a model and give it the model's weights, as version 0."""
    check_fills_masks(source=source)
    description = description or source.describe()
    engine.setup(description.config, description.tokenizer, description.spec, default_device())
    backbone = source.build(description.config)
    engine.update_weights(description.family.weights(backbone, engine.dtype), 0)
    return description


def default_device() -> str:
    """The device on which an engine works unless its options say otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"
