"""Low-rank adapters on matrices of a backbone: which tensors are theirs, and the matrices with them added.

Adapters are layers of peft (`dirl.models.lora` puts them there), which keep the matrix under `base_layer` and two
factors beside it. What is here reads their attributes alone, so that a model without adapters needs no peft.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

ADAPTER = "default"
"""The one adapter of a layer, by peft's name for it."""


class LowRank(NamedTuple):
    """What an adapter adds to a matrix [out, in]: scaling * up @ down."""

    down: Float[Tensor, "rank in"]
    """[rank, in]"""
    up: Float[Tensor, "out rank"]
    """[out, rank]"""
    scaling: float

    def added_to(self, matrix: Float[Tensor, "out in"], dtype: torch.dtype | None = None) -> Float[Tensor, "out in"]:
        """The whole matrix with the adapter, summed in fp32 at least and rounded once; None: to the matrix' own dtype.

        Its shards, and those of the factors, are gathered: call it on all ranks.
        """
        narrower = dtype is not None and dtype.itemsize <= matrix.dtype.itemsize
        down, up = whole(self.down.detach()), whole(self.up.detach())
        total = whole(matrix.detach()).to(torch.promote_types(matrix.dtype, down.dtype), copy=True)
        total.addmm_(up.to(total), down.to(total), alpha=self.scaling)
        return total.to(dtype if narrower else matrix.dtype)


def whole(value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The whole of a tensor whose shards lie on several ranks, which all have to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that have an adapter, by their names in the module."""
    return ((name, layer) for name, layer in module.named_modules() if hasattr(layer, "lora_A"))


def low_ranks(module: nn.Module) -> dict[str, LowRank]:
    """The factors of the weights that have them, by the names that these have without adapters."""
    return {
        f"{name}.weight": LowRank(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER])
        for name, layer in adapted(module)
    }


def is_adapters(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter and not to the backbone."""
    return ".lora_A." in name or ".lora_B." in name


def own_name(name: str) -> str:
    """The name that a tensor of the backbone has in a model without adapters."""
    return name.replace(".base_layer.", ".")


def names_with_adapter(name: str) -> tuple[str, str, str]:
    """Names in a layer with an adapter: that of the weight `name` itself, and those of its factors, `down` first."""
    owner, _, leaf = name.rpartition(".")
    return (
        f"{owner}.base_layer.{leaf}",
        f"{owner}.lora_A.{ADAPTER}.weight",
        f"{owner}.lora_B.{ADAPTER}.weight",
    )


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within the block the model is its base: no product of an adapter is made.

    peft's own switch also sets `requires_grad`, which FSDP2 copies from a shard at its first use and never again.
    """
    layers = [layer for _, layer in adapted(module)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
