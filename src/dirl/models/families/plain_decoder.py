"""Decoders whose arithmetic is known well enough to be computed without a call of their modules."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PlainDecoder:
    """A class of transformers that computes, with h the embedding of the tokens,

    - h += output(attention(rotary(norm(query(x))), rotary(norm(key(x))), value(x))), x = input_norm(h), then
    - h += down(act(gate(x)) * up(x)), x = mlp_norm(h), or whatever another class of `mlp` computes of x,

    layer by layer, and at last a norm. All norms are RMS norms, cast to the dtype of their input before they are
    scaled; those of query and key are over the width of a head, and so is the rotary embedding, its halves being pairs.

    Only these very classes are taken for it, no subclasses.
    """

    decoder: type[nn.Module]
    layer: type[nn.Module]
    norm: type[nn.Module]
    """The class of its norms, which have `weight` and `variance_epsilon`."""
    mlp: type[nn.Module]
    """One in a layer's `mlp` is computed here; one of another class is called."""
    input_norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    query_norm: str | None = "self_attn.q_norm"
    """None: query and key have no norm."""
    key_norm: str | None = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    activation: str = "mlp.act_fn"

    def of(self, layer: nn.Module, part: str) -> Any:
        """A module of a layer, e.g. `plain.of(layer, "query")`."""
        return attrgetter(getattr(self, part))(layer)
