"""Bytes per token that autograd keeps for the backward pass of transformers' Llama-shaped layers, tensor by tensor.

Eager layers under FlexAttention, which keeps its inputs, its output and one fp32 number per query and head.
`compile_layers` keeps less: what is counted here is then an upper bound.
"""

from dataclasses import dataclass
from typing import Literal

from dirl.models.shape import ModelShape
from dirl.modules.layers import Checkpointing
from dirl.planning.flops import recomputed_layers

Compute = Literal["fp32", "autocast", "fsdp_bf16"]
"""How layers compute: fp32; bf16 by autocast over fp32 weights; bf16 by FSDP2, residual stream and norms included."""

INDEX_BYTES = 8
"""Bytes of a token or position id, or of the number of an expert."""

ROW_BYTES = 4
"""Bytes of the number of a row among those of all experts."""


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes of activations per token of a packed row."""

    kept: float
    """What stays from the forward until the backward comes to each layer, all layers together."""
    once: float
    """Once a row: what the last norm and the rotary embedding keep, and the last hidden states."""
    at_work: float
    """What comes on top at the worst moment: a layer computed anew, and gradients of activations."""


def activation_bytes(shape: ModelShape, compute: Compute, checkpointing: Checkpointing) -> ActivationBytes:
    """What a row costs per token."""
    layer, entry = layer_bytes(shape, compute), shape.hidden_size * residual_bytes(compute)
    layers = shape.num_hidden_layers
    recomputed = recomputed_layers(layers, checkpointing)
    routes = ROW_BYTES * shape.experts_per_token * shape.sparse_layers / layers  # kept of a recomputed layer too
    kept = recomputed * (entry + routes) + (layers - recomputed) * layer
    shared = entry if compute != "fsdp_bf16" else 0  # a layer computed anew keeps its input, here as a copy in fp32
    kept_first = checkpointing == "none" or (checkpointing == "selective" and layers % 2 == 0)
    anew = 0 if kept_first else layer - shared  # where the last layer was kept, it is freed before one is recomputed
    last_norm = 20 * shape.hidden_size  # fp32 gradients of its five intermediate results, before any layer is freed
    at_work = max(anew + passing_bytes(shape, compute, kept_first), last_norm)
    return ActivationBytes(kept, _once(shape, compute), at_work)


def passing_bytes(shape: ModelShape, compute: Compute, kept_first: bool) -> int:
    """What a layer's MLP makes on top of what it keeps: gradients of its two wide results in a dense one. Experts, for
    each of a token: their output sorted by expert and by token at the end of the forward; where that is not computed
    anew, the gradients of output and product."""
    dense = 2 * shape.intermediate_size if shape.dense_layers else 0
    sparse = shape.experts_per_token * (shape.hidden_size + (shape.hidden_size if kept_first else shape.expert_size))
    return element_bytes(compute) * max(dense, sparse)


def element_bytes(compute: Compute) -> int:
    """Bytes of a number among the results of matrix products."""
    return 4 if compute == "fp32" else 2


def residual_bytes(compute: Compute) -> int:
    """Bytes of a number in the stream that the layers add to: autocast leaves the fp32 of the embedding in it."""
    return 2 if compute == "fsdp_bf16" else 4


def layer_bytes(shape: ModelShape, compute: Compute) -> float:
    """Mean over the layers, where dense ones and ones with experts alternate."""
    size = element_bytes(compute)
    dense, sparse = _mlp_bytes(shape, compute), _experts_bytes(shape, compute) if shape.sparse_layers else 0
    mlp = (shape.dense_layers * dense + shape.sparse_layers * sparse) / shape.num_hidden_layers
    norms = 2 * _norm_bytes(shape.hidden_size, 1, residual_bytes(compute))
    per_head = 0
    if shape.head_norms:
        per_head = _norm_bytes(shape.query_size, shape.num_attention_heads, size) + _norm_bytes(
            shape.key_size, shape.num_key_value_heads, size
        )
    attention = size * (2 * shape.query_size + 2 * shape.key_size) + 4 * shape.num_attention_heads
    if shape.fused and compute != "fp32":
        attention += size * (shape.query_size + shape.key_size)  # the values are a view of the product of all three
    return norms + _input_bytes(shape, compute, 1 if shape.fused else 3) + per_head + attention + mlp


def _once(shape: ModelShape, compute: Compute) -> float:
    residual = residual_bytes(compute)
    rotary = (1 if shape.fused else 2) * shape.head_dim * residual
    return _norm_bytes(shape.hidden_size, 1, residual) + shape.hidden_size * residual + rotary + INDEX_BYTES


def _norm_bytes(width: int, norms: int, size: int) -> int:
    """RMSNorm of a `size`-byte input: the input in fp32, the normalised in the input's dtype, and 1 / rms."""
    return 4 * width + size * width + 4 * norms


def _input_bytes(shape: ModelShape, compute: Compute, consumers: int) -> int:
    """The output of a norm, kept by the matrix products that read it; under autocast each has a bf16 copy."""
    copies = consumers if compute == "autocast" else 1
    return copies * element_bytes(compute) * shape.hidden_size


def _mlp_bytes(shape: ModelShape, compute: Compute) -> int:
    """Bytes of an MLP: gate, its SiLU, up, and their product."""
    return _input_bytes(shape, compute, 2) + 4 * element_bytes(compute) * shape.intermediate_size


def _experts_bytes(shape: ModelShape, compute: Compute) -> int:
    """Bytes for each expert of a token: its input, gate and up together, SiLU, product, this weighted, the weight, and
    its places among the rows; and the router's probabilities and choices. Grouped as in `dirl.models.experts`.
    Of a shared expert what a dense MLP keeps, but for an fp32 input, which the router keeps as well."""
    size = element_bytes(compute)
    router = 4 * shape.experts + 4 + (4 * shape.hidden_size if shape.fused else _input_bytes(shape, compute, 1))
    shared = 4 * size * shape.shared_expert_size
    if shape.shared_expert_size and compute != "fp32":
        shared += _input_bytes(shape, compute, 2)
    return routed_bytes(shape, compute) + router + shared


def routed_bytes(shape: ModelShape, compute: Compute) -> int:
    """Bytes of the experts alone, which their backward pass frees first."""
    rows = element_bytes(compute) * (shape.hidden_size + 5 * shape.expert_size + 1)
    return shape.experts_per_token * (rows + 2 * ROW_BYTES + INDEX_BYTES + 4)
