"""LLaDA2.0: mini of 16B and flash of 100B parameters; the versions after it edit what they have written."""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Shaped
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from dirl.models.backbones.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
from dirl.models.families.base import ModelFamily
from dirl.models.families.parts import Parts
from dirl.models.families.weights import Named, split_experts
from dirl.models.shape import ModelShape

VOCABULARY = 157_184
BUILT_AS = {
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "norm_head": False,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "use_sliding_window": False,
}
"""Switches of published configs -> what all published checkpoints say, which is what this backbone computes."""


class LLaDA2Family(ModelFamily):
    """LLaDA2; new ones have 8 experts in 4 groups, of which a token takes 2 of 2 groups, and a shared one."""

    model_types = ("llada2_moe",)
    parts = Parts(embedding="model.word_embeddings")
    fp32 = ("expert_bias",)
    named_shapes = {  # noqa: RUF012 - ClassVar in the base class
        "llada2.0-mini": ModelShape(
            2048, 5120, 20, 16, 4, 128, VOCABULARY, False, 256, 8, 512, 1, shared_expert_size=512, fused=True
        ),
        "llada2.0-flash": ModelShape(
            4096, 9216, 32, 32, 4, 128, VOCABULARY, False, 256, 8, 1024, 1, shared_expert_size=1024, fused=True
        ),
    }

    named_blocks = dict.fromkeys(named_shapes, 32)

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        dense = min(config.first_k_dense_replace, config.num_hidden_layers)
        sparse = dense < config.num_hidden_layers
        experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
        return ModelShape.of(
            config,
            *(experts if sparse else (0, 0, 0)),
            dense_layers=dense,
            shared_expert_size=config.moe_intermediate_size * config.num_shared_experts if sparse else 0,
            fused=True,
        )

    def register(self) -> None:
        AutoConfig.register("llada2_moe", LLaDA2MoeConfig, exist_ok=True)
        AutoModelForCausalLM.register(LLaDA2MoeConfig, LLaDA2MoeModelLM, exist_ok=True)
        experts = get_checkpoint_conversion_mapping("qwen3_moe")
        register_checkpoint_conversion_mapping("llada2_moe", experts, overwrite=True)

    def check(self, config: PreTrainedConfig, name: str) -> None:
        for switch, value in BUILT_AS.items():
            if (found := getattr(config, switch, value)) != value:
                raise ValueError(
                    f"model {name!r}: {switch}={found!r} in its config, but LLaDA2.0 is built with {switch}={value!r}; "
                    "use a checkpoint of LLaDA2.0, or add a family for this one (docs/extending.md)"
                )
        experts, groups, kept = config.num_experts, config.n_group, config.topk_group
        fits = kept <= groups and experts % groups == 0 and experts >= 2 * groups
        if not fits or config.num_experts_per_tok > kept * (experts // groups):
            raise ValueError(
                f"model {name!r}: {config.num_experts_per_tok} of {experts} experts cannot be chosen from {kept} of "
                f"{groups} groups; correct num_experts_per_tok, num_experts, topk_group and n_group in its config"
            )

    def new_config(self, **values: object) -> PreTrainedConfig:
        size = max(8, int(str(values.get("intermediate_size", 32))) // 4 // 8 * 8)
        few: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2}
        return LLaDA2MoeConfig(**{**few, "moe_intermediate_size": size, **values})

    def split(self, name: str, value: Shaped[Tensor, "..."]) -> Iterator[Named]:
        yield from split_experts(name, value)
