"""Qwen3 with a Mixture of Experts, and SDAR's: the same architecture under `model_type: sdar_moe`."""

from collections.abc import Iterator

from jaxtyping import Shaped
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeDecoderLayer,
    Qwen3MoeMLP,
    Qwen3MoeModel,
    Qwen3MoeRMSNorm,
)

from dirl.models.experts import experts_implementation
from dirl.models.families.base import ModelFamily
from dirl.models.families.code import RemoteCode, sdar_files
from dirl.models.families.plain_decoder import PlainDecoder
from dirl.models.families.qwen3 import VOCABULARY
from dirl.models.families.weights import Named, split_experts
from dirl.models.shape import ModelShape


class SDARMoeConfig(Qwen3MoeConfig):
    """Qwen3MoeConfig with `block_size` and `mask_token_id`."""

    model_type = "sdar_moe"


class SDARMoeForCausalLM(Qwen3MoeForCausalLM):
    config_class = SDARMoeConfig
    # transformers reads this off a module's source and caches it: a subclass would inherit it by the order of loading.
    _can_set_experts_implementation_cached_value = True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """The experts are computed as `dirl.models.experts` does, unless the config says otherwise."""
        return super().get_correct_experts_implementation(requested_experts or experts_implementation())


class Qwen3MoeFamily(ModelFamily):
    """Transformers keeps the experts of a layer in one tensor, [E, 2I, D] and [E, D, I]; checkpoints and engines know
    a matrix for each expert and projection."""

    model_types = ("sdar_moe", "qwen3_moe")
    plain_decoders = (PlainDecoder(Qwen3MoeModel, Qwen3MoeDecoderLayer, Qwen3MoeRMSNorm, Qwen3MoeMLP),)
    exported_as = {"qwen3_moe": "sdar_moe"}  # noqa: RUF012 - ClassVar in the base class
    named_shapes = {  # noqa: RUF012
        "sdar-30b-a3b": ModelShape(2048, 6144, 48, 32, 4, 128, VOCABULARY, False, 128, 8, 768),
    }

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        layers = config.num_hidden_layers
        sparse = sum(config.num_experts > 0 and _is_sparse(config, layer) for layer in range(layers))
        experts = (
            (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) if sparse else (0, 0, 0)
        )
        return ModelShape.of(config, *experts, dense_layers=layers - sparse)

    def register(self) -> None:
        AutoConfig.register("sdar_moe", SDARMoeConfig, exist_ok=True)
        AutoModelForCausalLM.register(SDARMoeConfig, SDARMoeForCausalLM, exist_ok=True)
        experts = get_checkpoint_conversion_mapping("qwen3_moe")
        register_checkpoint_conversion_mapping("sdar_moe", experts, overwrite=True)

    def split(self, name: str, value: Shaped[Tensor, "..."]) -> Iterator[Named]:
        yield from split_experts(name, value)

    def code(self, model_type: str) -> RemoteCode:
        config, model = "configuration_sdar.SDARMoeConfig", "modeling_sdar.SDARMoeForCausalLM"
        return RemoteCode({"AutoConfig": config, "AutoModelForCausalLM": model}, sdar_files())


def _is_sparse(config: PreTrainedConfig, layer: int) -> bool:
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
