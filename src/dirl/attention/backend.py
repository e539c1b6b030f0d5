"""The attention function that transformers' layers call, and the choice of its mask.

`build_mask` makes one of three masks from a layout: a FlexAttention BlockMask (GPU), a `SegmentMask`
(anywhere, the default on CPU), or a dense bool tensor for SDPA (the oracle of the other two).
"""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface

from dirl.attention.flex import flex_forward, flex_mask
from dirl.attention.sdpa import grouped_sdpa
from dirl.attention.segment_attention import segment_attention
from dirl.attention.segments import SegmentMask, segment_mask
from dirl.attention.visibility import dense_mask
from dirl.autocast import of_compute_type
from dirl.batches import Layout

ATTENTION_NAME = "dirl"
"""`attn_implementation` of every model that this package loads."""

Backend = Literal["auto", "flex", "segments", "dense"]
AttentionMask = Bool[Tensor, "#N 1 Q K"] | SegmentMask | BlockMask


@runtime_checkable
class AttentionLayer(Protocol):
    """What is asked of the module of transformers that calls `masked_attention`."""

    head_dim: int


def build_mask(layout: Layout, backend: Backend = "auto") -> AttentionMask:
    """The mask of a packed row. `auto`: FlexAttention on CUDA, segments elsewhere."""
    if backend == "auto":
        backend = "flex" if layout.group_ids.is_cuda else "segments"
    if backend == "flex":
        return flex_mask(layout)
    if backend == "segments":
        return segment_mask(layout)
    if backend == "dense":
        return dense_mask(layout)[None, None]
    raise ValueError(f"attention={backend!r}: use auto, flex, segments or dense")


def register_attention() -> None:
    """Make `attn_implementation="dirl"` known to transformers; harmless when repeated."""
    AttentionInterface.register(ATTENTION_NAME, masked_attention)


def masked_attention(
    module: AttentionLayer,
    query: Float[Tensor, "N H Q D"],
    key: Float[Tensor, "N Hkv K D"],
    value: Float[Tensor, "N Hkv K D"],
    attention_mask: AttentionMask | None,
    packed_mask: AttentionMask | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "N Q H D"], None]:
    """transformers' attention interface. query [N, H, Q, D], key and value [N, Hkv, K, D] -> [N, Q, H, D].

    Args:
        packed_mask: the mask as the caller of the model gave it; transformers hands on such keyword arguments
            unseen, but takes no mask of a type of ours for `attention_mask` in every model (Qwen3-MoE).
    """
    if attention_mask is None:
        attention_mask = packed_mask
    scale: float = kwargs.get("scaling") or module.head_dim**-0.5
    query, key, value = of_compute_type(query, key, value)  # the norms leave fp32 beside a bf16 value
    if isinstance(attention_mask, SegmentMask):
        return segment_attention(query, key, value, attention_mask, scale), None
    if isinstance(attention_mask, BlockMask):
        return flex_forward(query, key, value, attention_mask, scale).transpose(1, 2), None
    if not torch.is_tensor(attention_mask):
        raise ValueError(f"attention mask of type {type(attention_mask).__name__}: use dirl.attention.build_mask")
    return grouped_sdpa(query, key, value, attention_mask, scale).transpose(1, 2), None
