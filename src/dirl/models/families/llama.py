"""Llama's layers under a block mask: Stable-DiffCoder, and any Llama that is trained on blocks."""

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaModel, LlamaRMSNorm

from dirl.models.families.base import ModelFamily
from dirl.models.families.plain_decoder import PlainDecoder
from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.shape import ModelShape


class BlockLlamaConfig(LlamaConfig):
    """LlamaConfig with `block_size` and `mask_token_id`."""

    model_type = "block_llama"


class BlockLlamaForCausalLM(LlamaForCausalLM):
    config_class = BlockLlamaConfig


class BlockLlamaFamily(ModelFamily):
    """A Llama that still said `llama` would be run causally by every other program, without a word: it is exported as
    `block_llama`. One whose config names code of its own, as Stable-DiffCoder's does, keeps its type and its code."""

    model_types = ("block_llama", "llama")
    plain_decoders = (
        PlainDecoder(LlamaModel, LlamaDecoderLayer, LlamaRMSNorm, LlamaMLP, query_norm=None, key_norm=None),
    )
    tensor_plan = TensorPlan.of(plain_decoders[0])
    named_shapes = {  # noqa: RUF012 - ClassVar in the base class
        "stable-diffcoder-8b": ModelShape(
            4096, 14_336, 32, 32, 8, 128, 155_136, False, dense_layers=32, head_norms=False
        ),
    }

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        return ModelShape.dense(config, head_norms=False)

    def register(self) -> None:
        AutoConfig.register("block_llama", BlockLlamaConfig, exist_ok=True)
        AutoModelForCausalLM.register(BlockLlamaConfig, BlockLlamaForCausalLM, exist_ok=True)

    def exported_type(self, config: PreTrainedConfig) -> str:
        has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        return config.model_type if has_code else "block_llama"

    def check(self, config: PreTrainedConfig, name: str) -> None:
        super().check(config, name)
        for switch in ("attention_bias", "mlp_bias"):
            if getattr(config, switch, False):
                raise ValueError(
                    f"model {name!r}: {switch}=true in its config, which plans of this family do not count; add a "
                    "family for it (docs/extending.md)"
                )
