"""DreamReasoner-8B: Qwen3's layers and weight names, trained on blocks, under the model type of Dream."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM

from dirl.models.families.parts import check_full_attention
from dirl.models.families.qwen3 import VOCABULARY, Qwen3Family
from dirl.models.shape import ModelShape


@strict
class DreamReasonerConfig(Qwen3Config):
    model_type = "Dream"
    head_dim: int | None = None  # type: ignore[assignment]

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class DreamReasonerForCausalLM(Qwen3ForCausalLM):
    config_class = DreamReasonerConfig


class DreamReasonerFamily(Qwen3Family):
    """Exported as SDAR, which computes the same: so it is served by what serves SDAR. Dream 7B, of the same model type,
    has no blocks; see `dirl.models.families.refused`."""

    model_types = ("Dream",)
    exported_as = {"Dream": "sdar"}  # noqa: RUF012 - ClassVar in the base class
    named_shapes = {  # noqa: RUF012
        "dreamreasoner-8b": ModelShape(4096, 12_288, 36, 32, 8, 128, VOCABULARY, False, dense_layers=36),
    }

    named_blocks = {"dreamreasoner-8b": 32}  # noqa: RUF012

    def register(self) -> None:
        AutoConfig.register("Dream", DreamReasonerConfig, exist_ok=True)
        AutoModelForCausalLM.register(DreamReasonerConfig, DreamReasonerForCausalLM, exist_ok=True)

    def check(self, config: PreTrainedConfig, name: str) -> None:
        check_full_attention(config, name)
        if config.attention_bias:
            raise ValueError(
                f"model {name!r}: attention_bias=true in its config; DreamReasoner has none, and Dream 7B, which has, "
                "attends to the whole sequence"
            )
