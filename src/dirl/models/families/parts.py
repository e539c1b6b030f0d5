"""Where a backbone has its modules, and what its layers must be."""

from dataclasses import dataclass
from operator import attrgetter

from torch import nn
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Parts:
    """Names of modules within a backbone, as most causal language models of transformers have them."""

    decoder: str = "model"
    """Token ids to last hidden states."""
    layers: str = "model.layers"
    norm: str = "model.norm"
    """After the last layer."""
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    """Hidden states to logits, by one matrix without a bias."""
    rotary: str = "model.rotary_emb"

    def of(self, backbone: nn.Module, part: str) -> nn.Module:
        """The module itself, e.g. `parts.of(backbone, "head")`."""
        return attrgetter(getattr(self, part))(backbone)


def check_full_attention(config: PreTrainedConfig, name: str) -> None:
    """Raise ValueError unless every layer attends to all that the mask allows."""
    kinds = getattr(config, "layer_types", None)  # Qwen3-MoE has none: its window is that of all layers
    if kinds is None:
        window = getattr(config, "sliding_window", None)
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    sliding = [i for i, kind in enumerate(kinds) if kind != "full_attention"]
    if sliding:
        raise ValueError(f"model {name!r}: layers {sliding} use sliding-window attention; set use_sliding_window=false")
