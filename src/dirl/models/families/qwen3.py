"""Qwen3, and SDAR: Qwen3's architecture and weight names under `model_type: sdar`.

Registering config and model class is enough to load official checkpoints without remote code.
"""

from collections.abc import Mapping
from typing import ClassVar

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3MLP, Qwen3Model, Qwen3RMSNorm

from dirl.models.families.base import ModelFamily
from dirl.models.families.code import RemoteCode, sdar_files
from dirl.models.families.plain_decoder import PlainDecoder
from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.shape import ModelShape

VOCABULARY = 151_936


class SDARConfig(Qwen3Config):
    """Qwen3Config with `block_size` and `mask_token_id`; `rope_theta` alone is accepted as in the official config."""

    model_type = "sdar"


class SDARForCausalLM(Qwen3ForCausalLM):
    config_class = SDARConfig


class Qwen3Family(ModelFamily):
    """Dense; exported as SDAR, which a Qwen3 that was trained on blocks is."""

    model_types: ClassVar[tuple[str, ...]] = ("sdar", "qwen3")
    plain_decoders = (PlainDecoder(Qwen3Model, Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3MLP),)
    tensor_plan = TensorPlan.of(plain_decoders[0])
    exported_as = {"qwen3": "sdar"}  # noqa: RUF012 - ClassVar in the base class
    named_shapes = {  # noqa: RUF012
        "sdar-1.7b": ModelShape(2048, 6144, 28, 16, 8, 128, VOCABULARY, True, dense_layers=28),
        "sdar-4b": ModelShape(2560, 9728, 36, 32, 8, 128, VOCABULARY, True, dense_layers=36),
        "sdar-8b": ModelShape(4096, 12288, 36, 32, 8, 128, VOCABULARY, False, dense_layers=36),
        "efficient-dlm-4b": ModelShape(2560, 9728, 36, 32, 8, 128, VOCABULARY, False, dense_layers=36),
        "efficient-dlm-8b": ModelShape(4096, 12288, 36, 32, 8, 128, VOCABULARY, False, dense_layers=36),
    }
    named_blocks: ClassVar[Mapping[str, int]] = {"efficient-dlm-4b": 32, "efficient-dlm-8b": 32}

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        return ModelShape.dense(config)

    def register(self) -> None:
        AutoConfig.register("sdar", SDARConfig, exist_ok=True)
        AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM, exist_ok=True)

    def code(self, model_type: str) -> RemoteCode:
        config, model = "configuration_sdar.SDARConfig", "modeling_sdar.SDARForCausalLM"
        return RemoteCode({"AutoConfig": config, "AutoModelForCausalLM": model}, sdar_files())
