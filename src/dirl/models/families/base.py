"""What a model family says of its backbones; all other parts ask it, and keep no list of models."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dirl.attention import ATTENTION_NAME
from dirl.models.families.code import RemoteCode
from dirl.models.families.low_rank import whole
from dirl.models.families.parts import Parts, check_full_attention
from dirl.models.families.plain_decoder import PlainDecoder
from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.families.weights import Named, base_tensors, cast
from dirl.models.shape import ModelShape


class ModelFamily(ABC):
    """A kind of causal language model of transformers that can serve as a block-diffusion model.

    To add one, subclass it in a module of your own, say its `model_types` and its `shape`, and name the class where the
    model comes from: `source: {class_path: dirl.models.PretrainedModel, init_args: {family: my_models.MyFamily, ...}}`.
    Its layers have to call transformers' attention interface, without a sliding window, and to hand on keyword
    arguments; its logits are those of the position itself (`logit_shift` 0, the only one that is supported today).
    Whatever differs from the defaults below is overridden: a class that transformers does not know is made known in
    `register`; weights that checkpoints keep otherwise than transformers' modules do are taken apart in `split`.
    """

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the configs that it serves; a new model is of the first."""
    parts: ClassVar[Parts] = Parts()
    """Where a backbone has its decoder, layers, last norm, embedding, head and rotary embedding."""
    plain_decoders: ClassVar[tuple[PlainDecoder, ...]] = ()
    """Decoders that the torch engine may compute without a call of their modules; it calls those of any other."""
    tensor_plan: ClassVar[TensorPlan | None] = None
    """How tensor parallelism cuts a layer; None: it is refused."""
    logit_shift: ClassVar[int] = 0
    """The logits at position i are of token i + logit_shift."""
    fp32: ClassVar[tuple[str, ...]] = ()
    """Last parts of the names of tensors that files keep in fp32 whatever the dtype of the others."""
    exported_as: ClassVar[Mapping[str, str]] = {}
    """Model types that an export renames: by their old names, other programs would run them causally."""
    named_shapes: ClassVar[Mapping[str, ModelShape]] = {}
    """Published models, by the names that `plan` takes for them."""
    named_blocks: ClassVar[Mapping[str, int]] = {}
    """Block sizes of those that have other blocks than 4, where a name stands for a config."""

    @abstractmethod
    def shape(self, config: PreTrainedConfig) -> ModelShape:
        """The sizes that decide what a model of this config costs."""

    def register(self) -> None:  # noqa: B027 - transformers knows most
        """Make config and model classes known to AutoConfig and AutoModelForCausalLM; harmless when repeated."""

    def check(self, config: PreTrainedConfig, name: str) -> None:
        """Raise ValueError, with the model's name, for a config that cannot serve."""
        check_full_attention(config, name)

    def exported_type(self, config: PreTrainedConfig) -> str:
        """The model type under which a model of this config is exported."""
        return self.exported_as.get(config.model_type, config.model_type)

    def new_config(self, **values: object) -> PreTrainedConfig:
        """The config of a model with random weights; `values` go by the names that Qwen3's config has for them."""
        return AutoConfig.for_model(self.model_types[0], **values)

    def build(self, config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A backbone with random weights; dtype None: that of the config."""
        options = {} if dtype is None else {"dtype": dtype}
        return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME, **options)

    def split(self, name: str, value: Shaped[Tensor, "..."]) -> Iterator[Named]:
        """A tensor of the backbone as checkpoints and engines keep it: one or more views of it, by their names."""
        yield name, value

    def code(self, model_type: str) -> RemoteCode | None:
        """What plain transformers needs to run an exported model of this type; None: nothing."""
        return None

    def weights(self, backbone: PreTrainedModel, dtype: torch.dtype | None = None) -> Iterator[Named]:
        """All weights and stored buffers as checkpoints and engines know them, whole, one tensor at a time.

        With a dtype, weights are cast before they are gathered from shards; see `cast`. A weight with an adapter comes
        with the adapter added, and is cast after that. Call it on all ranks.
        """
        for name, value, low_rank in base_tensors(backbone):
            merged = whole(cast(value, dtype)) if low_rank is None else low_rank.added_to(value, dtype)
            yield from self.split(name, merged)
