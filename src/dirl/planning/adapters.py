"""What LoRA costs: parameters of the adapters, and the bytes that autograd keeps where the weights are frozen.

A product with a frozen matrix keeps no input, a norm with a frozen weight no normalised rows; an adapter keeps the
input of its layer, and rank numbers a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dirl.models.shape import ModelShape
from dirl.modules.layers import Checkpointing
from dirl.planning.activations import (
    INDEX_BYTES,
    ROW_BYTES,
    ActivationBytes,
    Compute,
    element_bytes,
    passing_bytes,
    residual_bytes,
)
from dirl.planning.flops import recomputed_layers

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AdapterShape:
    """Adapters on all layers of these names; `targets` of `of` None: on all that a layer has."""

    rank: int
    targets: frozenset[str]

    @classmethod
    def of(cls, rank: int, targets: Sequence[str] | None) -> "AdapterShape":
        """The adapters of a config; ValueError for a name that a plan does not know."""
        names = frozenset(target.rpartition(".")[2] for target in targets or (*ATTENTION, *MLP))
        if strange := sorted(names - {*ATTENTION, *MLP}):
            raise ValueError(
                f"model.lora.targets: {strange[0]!r} is none of the layers that plan knows: "
                f"{', '.join((*ATTENTION, *MLP))}"
            )
        return cls(rank, names)

    def matrices(self, shape: ModelShape) -> dict[str, tuple[int, int, int]]:
        """The adapted matrices by name: what goes in, what comes out, and in how many layers."""
        width, queries, keys, inner = shape.hidden_size, shape.query_size, shape.key_size, shape.intermediate_size
        layers, dense = shape.num_hidden_layers, shape.dense_layers
        every = {
            "q_proj": (width, queries, layers),
            "k_proj": (width, keys, layers),
            "v_proj": (width, keys, layers),
            "o_proj": (queries, width, layers),
            "gate_proj": (width, inner, dense),
            "up_proj": (width, inner, dense),
            "down_proj": (inner, width, dense),
        }
        return {name: sizes for name, sizes in every.items() if name in self.targets and sizes[2]}

    def parameters(self, shape: ModelShape) -> int:
        return sum(self.rank * (size_in + size_out) * layers for size_in, size_out, layers in self.weights(shape))

    def weights(self, shape: ModelShape) -> list[tuple[int, int, int]]:
        return list(self.matrices(shape).values())

    def largest_matrix(self, shape: ModelShape) -> int:
        """Entries of the largest weight that an adapter is added to."""
        return max(size_in * size_out for size_in, size_out, _ in self.weights(shape))


def adapter_activation_bytes(
    shape: ModelShape, adapters: AdapterShape, compute: Compute, checkpointing: Checkpointing
) -> ActivationBytes:
    """What `activation_bytes` counts, for a frozen model with adapters."""
    layer, entry = _layer_bytes(shape, adapters, compute), shape.hidden_size * residual_bytes(compute)
    layers = shape.num_hidden_layers
    recomputed = recomputed_layers(layers, checkpointing)
    routes = ROW_BYTES * shape.experts_per_token * shape.sparse_layers / layers
    kept = recomputed * (entry + routes) + (layers - recomputed) * layer
    kept -= _before_first(shape, adapters, compute) if checkpointing == "none" else 0
    shared = entry if compute != "fsdp_bf16" else 0
    kept_first = checkpointing == "none" or (checkpointing == "selective" and layers % 2 == 0)
    anew = 0 if kept_first else layer - shared
    last_norm = 20 * shape.hidden_size
    passing = passing_bytes(shape, compute, kept_first)
    once = _norm_bytes(shape.hidden_size, 1) + entry + 2 * shape.head_dim * residual_bytes(compute) + INDEX_BYTES
    return ActivationBytes(kept, once, max(anew + passing, last_norm))


def _layer_bytes(shape: ModelShape, adapters: AdapterShape, compute: Compute) -> float:
    """Bytes of a layer, as the mean over all layers."""
    size, targets, layers = element_bytes(compute), adapters.targets, shape.num_hidden_layers
    width, inner = shape.hidden_size, shape.intermediate_size
    every = _attention_bytes(shape, compute) + _norm_bytes(width, 1)
    every += size * width * bool(targets & {"q_proj", "k_proj", "v_proj"})
    dense = size * (3 * inner + width * bool(targets & {"gate_proj", "up_proj"}) + inner * ("down_proj" in targets))
    sparse = _experts_bytes(shape, compute) if shape.sparse_layers else 0
    ranks = size * adapters.rank * sum(count for _, _, count in adapters.weights(shape))
    return every + (dense * shape.dense_layers + sparse * shape.sparse_layers + ranks) / layers


def _attention_bytes(shape: ModelShape, compute: Compute) -> int:
    """Its norm, those of queries and keys, and the kernel's inputs, output and sums."""
    norms = _norm_bytes(shape.hidden_size, 1)
    if shape.head_norms:
        norms += _norm_bytes(shape.query_size, shape.num_attention_heads)
        norms += _norm_bytes(shape.key_size, shape.num_key_value_heads)
    return norms + element_bytes(compute) * 2 * (shape.query_size + shape.key_size) + 4 * shape.num_attention_heads


def _before_first(shape: ModelShape, adapters: AdapterShape, compute: Compute) -> int:
    """Bytes of what comes before the first adapter of the first layer: nothing there has a gradient."""
    if adapters.targets & {"q_proj", "k_proj", "v_proj"}:
        return _norm_bytes(shape.hidden_size, 1)
    attention = _attention_bytes(shape, compute)
    if adapters.targets & {"o_proj", "gate_proj", "up_proj"}:
        return attention
    return attention + _norm_bytes(shape.hidden_size, 1) + 3 * element_bytes(compute) * shape.intermediate_size


def _norm_bytes(width: int, norms: int) -> int:
    """RMSNorm with a frozen weight: the input in fp32, and 1 / rms."""
    return 4 * width + 4 * norms


def _experts_bytes(shape: ModelShape, compute: Compute) -> int:
    """Bytes for each expert of a token: gate and up together, SiLU, product, weight, its places among the rows; and the
    router's probabilities and choices."""
    each = element_bytes(compute) * (4 * shape.expert_size + 1) + 2 * ROW_BYTES + INDEX_BYTES + 4
    return shape.experts_per_token * each + 4 * shape.experts + 4
