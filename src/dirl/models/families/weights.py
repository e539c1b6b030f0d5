"""The weights of a backbone one at a time: which there are, in which dtype they travel, whole or without values."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dirl.models.families.low_rank import LowRank, is_adapters, low_ranks, own_name

if TYPE_CHECKING:
    from dirl.models.families.base import ModelFamily

Named = tuple[str, Tensor]


def named_tensors(module: nn.Module) -> Iterator[Named]:
    """What checkpoints hold, by transformers name: parameters, each once, then the buffers that belong to them."""
    yield from module.named_parameters()
    yield from stored_buffers(module)


def stored_buffers(module: nn.Module) -> Iterator[Named]:
    """Buffers that are part of a checkpoint; those that are computed from the config are not."""
    for prefix, owner in module.named_modules():
        for name, value in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, value


def cast(value: Shaped[Tensor, "*any"], dtype: torch.dtype | None) -> Shaped[Tensor, "*any"]:
    """A weight in the dtype in which it will be used, without its gradient; of a shard, the shard alone.

    None leaves it as it is, and so does a dtype that is wider: it would add bytes and no information. Buffers keep
    their dtype: what a model computes in fp32 on purpose is among them.
    """
    weight = isinstance(value, nn.Parameter) and value.is_floating_point()
    narrower = weight and dtype is not None and dtype.itemsize <= value.dtype.itemsize
    return value.detach().to(dtype) if narrower else value.detach()


def base_tensors(backbone: nn.Module) -> Iterator[tuple[str, Shaped[Tensor, "..."], LowRank | None]]:
    """As `named_tensors` of the model without adapters, each with what its adapter adds to it."""
    added = low_ranks(backbone)
    for name, value in named_tensors(backbone):
        if not is_adapters(name):
            yield own_name(name), value, added.get(own_name(name))


def split_experts(name: str, value: Shaped[Tensor, "..."]) -> Iterator[Named]:
    """Experts that transformers keeps in one tensor, [E, 2I, D] or [E, D, I], as checkpoints know them: each projection
    of each by itself. Anything else as it is."""
    owner, _, kind = name.rpartition(".")
    if not owner.endswith(".experts"):
        yield name, value
        return
    for index, expert in enumerate(value):
        parts = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True)
        for part, matrix in parts if kind == "gate_up_proj" else [("down_proj", expert)]:
            yield f"{owner}.{index}.{part}.weight", matrix


def weight_shapes(family: "ModelFamily", backbone: nn.Module) -> dict[str, torch.Size]:
    """The shapes of `family.weights`, by the same names and in the same order; nothing is gathered."""
    empty = ((name, torch.empty(value.shape, device="meta")) for name, value, _ in base_tensors(backbone))
    return {part: view.shape for name, value in empty for part, view in family.split(name, value)}


def empty_backbone(family: "ModelFamily", config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A backbone with its weights and stored buffers on the meta device; the buffers of the config have values."""
    config = copy.deepcopy(config)  # the dtype is written into it
    with torch.device("meta"):
        backbone = family.build(config, dtype)
    owner, _, name = family.parts.rotary.rpartition(".")
    with torch.device("cpu"):
        rotary = type(family.parts.of(backbone, "rotary"))(config=config)
    setattr(backbone.get_submodule(owner), name, rotary)
    awaited = dict(stored_buffers(backbone))
    left = [name for name, buffer in backbone.named_buffers() if buffer.is_meta and name not in awaited]
    assert not left, f"buffers without values: {left}"
    return backbone
