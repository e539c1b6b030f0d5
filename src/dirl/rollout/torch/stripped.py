"""A decoder's forward without a call of its modules: the weights of a model that its family knows, and torch.

Of a small model most time goes into the calls of transformers' modules, and on a GPU into the launches of kernels that
they could share. Here masks, positions and rotary embeddings are made once for all layers, and products with the same
input are one. What is rounded, and when, is as in the modules, so the results differ from theirs by the order in which
products are summed and no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from dirl.models.families import ModelFamily, PlainDecoder
from dirl.rollout.torch.slot_cache import SlotCache

Rows = tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]
Matrix = tuple[Float[Tensor, "_ _"], Float[Tensor, " _"] | None]
"""Weight [out, in] and bias [out], of as many sizes as there are matrices in a layer."""


def obstacle(family: ModelFamily, model: nn.Module) -> str | None:
    """Why a model has to be computed by its own modules; None: it need not."""
    if not isinstance(model, PreTrainedModel):
        return f"{type(model).__name__} is no model of transformers"
    decoder = family.parts.of(model, "decoder")
    plain = _plain_of(family, decoder)
    if plain is None:
        return f"the family {type(family).__name__} does not say what a {type(decoder).__name__} computes"
    kind = getattr(family.parts.of(model, "rotary"), "rope_type", "default")
    if "dynamic" in kind or kind == "longrope":
        return f"its rotary embedding ({kind}) depends on the length of a sequence"
    layers: Any = family.parts.of(model, "layers")
    if found := next(filter(None, (_layer_obstacle(plain, layer) for layer in layers)), None):
        return found
    norms: list[Any] = [part for part in decoder.modules() if hasattr(part, "variance_epsilon")]
    if len({norm.variance_epsilon for norm in norms}) > 1 or {type(norm) for norm in norms} != {plain.norm}:
        return f"its norms are not all of {plain.norm.__name__} with one epsilon"
    hooked = [name for name, part in decoder.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    return f"the module {hooked[0] or type(decoder).__name__} has a hook" if hooked else None


def _plain_of(family: ModelFamily, decoder: nn.Module) -> PlainDecoder | None:
    return next((plain for plain in family.plain_decoders if plain.decoder is type(decoder)), None)


def _layer_obstacle(plain: PlainDecoder, layer: Any) -> str | None:
    if type(layer) is not plain.layer:
        return f"a layer is a {type(layer).__name__}"
    if getattr(layer.self_attn, "sliding_window", None) is not None:
        return "a layer has a sliding window"
    dense = ("gate", "up", "down") if type(layer.mlp) is plain.mlp else ()
    for name in ("query", "key", "value", "output", *dense):
        if type(matrix := plain.of(layer, name)) is not nn.Linear:
            return f"{getattr(plain, name)} is a {type(matrix).__name__}"
    return None


@dataclass(frozen=True)
class _Mlp:
    gate_up: Matrix
    down: Matrix
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, *self.gate_up).chunk(2, dim=-1)
        return F.linear(self.activation(gate).mul_(up), *self.down)


@dataclass(frozen=True)
class _Called:
    """A module that takes [N, Q, D] alone."""

    module: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x if x.dim() == 3 else x[None]).view_as(x)


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    query_key_value: Matrix
    head_scale: Tensor | None
    """[H + Hkv, D] of the norms of query and key."""
    output: Matrix
    mlp_norm: Tensor
    mlp: _Mlp | _Called


class StrippedDecoder:
    """Tokens to last hidden states, through the cache; for a model without an `obstacle`.

    Lays the weights of projections with the same input side by side, where they stay the model's parameters. Make it
    anew when weights have changed.
    """

    takes_both = True
    """A forward may be over two blocks of a sequence: see `SlotCache.decode`."""

    def __init__(self, family: ModelFamily, model: nn.Module, cache: SlotCache) -> None:
        plain = _plain_of(family, family.parts.of(model, "decoder"))
        assert plain is not None, "see `obstacle`"
        self.cache = cache
        layers: Any = family.parts.of(model, "layers")
        attention = layers[0].self_attn
        self.width: int = attention.head_dim
        self.scale: float = attention.scaling
        self.key_heads = cache.keys.shape[2]
        self.heads = plain.of(layers[0], "query").out_features // self.width
        self.layers = [self._read(plain, layer) for layer in layers]
        self.embedding = family.parts.of(model, "embedding")
        norm: Any = family.parts.of(model, "norm")
        self.norm: Tensor = norm.weight
        self.epsilon: float = norm.variance_epsilon
        self.rotation = self._rotation(family.parts.of(model, "rotary"))

    def _read(self, plain: PlainDecoder, layer: Any) -> _Layer:
        def matrix(*names: str) -> Matrix:
            return side_by_side(*(plain.of(layer, name) for name in names))

        scale = None
        if plain.query_norm is not None:
            counts = {"query_norm": self.heads, "key_norm": self.key_heads}
            scale = torch.cat([plain.of(layer, name).weight.expand(count, -1) for name, count in counts.items()])
        mlp: _Mlp | _Called = _Called(layer.mlp)
        if type(layer.mlp) is plain.mlp:
            activation = plain.of(layer, "activation")
            known = isinstance(activation, SiLUActivation | nn.SiLU)
            mlp = _Mlp(matrix("gate", "up"), matrix("down"), F.silu if known else activation)
        norms = (plain.of(layer, name).weight for name in ("input_norm", "mlp_norm"))
        return _Layer(next(norms), matrix("query", "key", "value"), scale, matrix("output"), next(norms), mlp)

    def _rotation(self, rotary: nn.Module) -> Tensor:
        """[length, 2, D]: cosine, and the sine with the sign of what it is multiplied with, of each position."""
        positions = torch.arange(self.cache.length, device=self.cache.keys.device)
        cosine, sine = rotary(self.norm, positions[None])
        half = sine.shape[-1] // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], -1)
        return torch.stack([cosine[0], signed[0]], 1)

    def __call__(
        self,
        input_ids: Int64[Tensor, "N Q"],
        positions: Int64[Tensor, "#N Q"],
        mask: Bool[Tensor, "#N 1 #Q K"] | None,
        at: Rows,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states [M, D] of some of the tokens [N, Q]: behind its keys the last layer computes no others.

        Args:
            positions: [N or 1, Q].
            mask: bool [N or 1, 1, 1 or Q, K], which keys a query sees; None: all.
            at: rows and columns [M] of the tokens wanted.
        """
        hidden = self.embedding(input_ids)
        cosine, sine = self.rotation[positions].split(1, dim=-2)
        bias = None if mask is None else self._bias(mask, input_ids.shape[1], hidden.dtype)
        for number, layer in enumerate(self.layers):
            found = self._attention(number, layer, self._normed(hidden, layer.input_norm), cosine, sine, bias)
            if number == len(self.layers) - 1:
                found, hidden = found[at], hidden[at]
            hidden = F.linear(found, *layer.output).add_(hidden)
            hidden = layer.mlp(self._normed(hidden, layer.mlp_norm)).add_(hidden)
        return self._normed(hidden, self.norm)

    def _attention(
        self, number: int, layer: _Layer, x: Tensor, cosine: Tensor, sine: Tensor, bias: Tensor | None
    ) -> Tensor:
        """What the heads found, [N, Q, H * D]."""
        count, length, _ = x.shape
        heads = F.linear(x, *layer.query_key_value).view(count, length, -1, self.width)
        turned, value = heads.split_with_sizes((self.heads + self.key_heads, self.key_heads), 2)
        if layer.head_scale is not None:
            turned = self._normed(turned, layer.head_scale)
        turned = (turned * cosine).add_(turned.roll(self.width // 2, -1).mul_(sine))
        query, key = turned.split_with_sizes((self.heads, self.key_heads), 2)
        keys, values = self.cache.store(number, key, value)
        more = self.cache.more
        if not len(more):
            return self._attend(query, keys, values, bias)
        # Two blocks of queries for each slot, the finished one first; where there is none, something that is dropped.
        slots = count - len(more)
        both = query.new_zeros((slots, 2 * length, *query.shape[2:]))
        both[:, length:], both[more, :length] = query[:slots], query[slots:]
        found = self._attend(both, keys, values, bias)
        return torch.cat([found[:, length:], found[more, :length]])

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The query heads that share a key lie side by side in the length, as in `dirl.attention.sdpa`."""
        count, length, _, width = query.shape
        shared = self.heads // self.key_heads
        folded = query.reshape(count, length, self.key_heads, shared, width).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(count, self.key_heads, shared * length, width)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias, scale=self.scale)
        out = out.view(count, self.key_heads, shared, length, width).permute(0, 3, 1, 2, 4)
        return out.reshape(count, length, -1)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Cast before it is scaled, as in the modules; in one kernel, where that makes no difference."""
        if x.dtype == torch.float32 and weight.dim() == 1:
            return F.rms_norm(x, weight.shape, weight, self.epsilon)
        return F.rms_norm(x, weight.shape[-1:], None, self.epsilon).mul_(weight)

    def _bias(self, mask: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """0 and -inf for `scaled_dot_product_attention`, which would make it of bools in every layer."""
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
        groups, more = self.heads // self.key_heads, self.cache.more
        if mask.shape[2] > 1:
            return bias.repeat(1, 1, groups, 1)
        if not len(more):
            return bias.expand(-1, -1, groups * length, -1)
        slots, span = len(mask) - len(more), mask.shape[-1]
        both = bias.new_zeros((slots, 1, 1, 2, 1, span))
        both[:, 0, 0, 1, 0], both[more, 0, 0, 0, 0] = bias[:slots, 0, 0], bias[slots:, 0, 0]
        return both.expand(-1, -1, groups, -1, length, -1).reshape(slots, 1, groups * 2 * length, span)


@torch.no_grad()
def side_by_side(*linears: nn.Linear) -> Matrix:
    """One matrix of several with the same input. It is their memory: what is written into them is seen in it."""
    weights = [linear.weight for linear in linears]
    biases = [linear.bias for linear in linears if linear.bias is not None]
    assert len(biases) in (0, len(linears)), "some have a bias and some have none"
    return _one(weights), _one(biases) if biases else None


def _one(parts: Sequence[Tensor]) -> Tensor:
    whole = (
        parts[0].as_strided((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].stride()) if _in_row(parts) else None
    )
    if whole is None:
        whole = torch.cat([part.detach() for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
    return whole


def _in_row(parts: Sequence[Tensor]) -> bool:
    """Whether each begins where the one before it ends."""
    end = parts[0].data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == parts[0].untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.data_ptr() == end):
            return False
        end += part.numel() * part.element_size()
    return True
