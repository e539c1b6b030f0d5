"""What a module gives out of its model: weights with adapters merged, adapters alone, and their shapes."""

from collections.abc import Iterator
from functools import cached_property

import torch

from dirl.checkpoints.resumable import Resumable
from dirl.models import BlockDiffusionLM, ModelDescription, ModelSource
from dirl.models.adapter_files import named_adapters
from dirl.models.families.weights import Named, weight_shapes
from dirl.models.lora import LoRAConfig, with_adapters
from dirl.modules.sharding import reshard


class WeightAccess(Resumable):
    """The weights of the model that `configure_model` builds, however it is sharded."""

    source: ModelSource
    lora: LoRAConfig | None
    model: BlockDiffusionLM | None

    @cached_property
    def description(self) -> ModelDescription:
        return self.source.describe()

    def full_weights(self, dtype: torch.dtype | None = None) -> Iterator[Named]:
        """`ModelFamily.weights` of the backbone, cast to the dtype before they are gathered; call it on all ranks."""
        assert self.model is not None, "`configure_model` builds it"
        reshard(self.model)
        yield from self.description.family.weights(self.model.backbone, dtype)

    def full_adapters(self) -> Iterator[Named]:
        """The adapters by peft's names, gathered one at a time; call it on all ranks."""
        assert self.model is not None, "`configure_model` builds it"
        reshard(self.model)
        yield from named_adapters(self.model.backbone)

    def weight_shapes(self) -> dict[str, torch.Size]:
        """The shapes of `full_weights`, by name."""
        return weight_shapes(self.description.family, self.model.backbone)

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights in a checkpoint, by name, without building the model."""
        backbone = with_adapters(self.lora, self.description, self.source)
        return {f"model.backbone.{name}": tuple(value.shape) for name, value in backbone.state_dict().items()}
