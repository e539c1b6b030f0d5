"""SDAR for transformers: Qwen3's architecture and weight names under `model_type: sdar`.

Registering config and model classes is enough to load official checkpoints without remote code.
"""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from dirl.attention import register_attention
from dirl.models.experts import experts_implementation


class SDARConfig(Qwen3Config):
    """Qwen3Config with `block_size` and `mask_token_id`; `rope_theta` alone is accepted as in the official config."""

    model_type = "sdar"


class SDARMoeConfig(Qwen3MoeConfig):
    """Qwen3MoeConfig with `block_size` and `mask_token_id`."""

    model_type = "sdar_moe"


class SDARForCausalLM(Qwen3ForCausalLM):
    config_class = SDARConfig


class SDARMoeForCausalLM(Qwen3MoeForCausalLM):
    config_class = SDARMoeConfig
    # transformers reads this off a module's source and caches it: a subclass would inherit it by the order of loading.
    _can_set_experts_implementation_cached_value = True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """As `dirl.models.experts` computes them, unless the config says otherwise."""
        return super().get_correct_experts_implementation(requested_experts or experts_implementation())


def register_models() -> None:
    """Make `sdar` and `sdar_moe` known to AutoConfig and AutoModelForCausalLM; harmless when repeated."""
    register_attention()
    for config, model in ((SDARConfig, SDARForCausalLM), (SDARMoeConfig, SDARMoeForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
    # Checkpoints keep experts one by one, transformers' model keeps them together.
    experts = get_checkpoint_conversion_mapping("qwen3_moe")
    register_checkpoint_conversion_mapping(SDARMoeConfig.model_type, experts, overwrite=True)
