"""Tensor parallelism: the layers of a model cut over a group of processes that see the same rows.

Parameters are DTensors, so that FSDP2, checkpoints, the norm of the gradient and exports know whose part is where;
modules compute with their own part of them as plain tensors. A layer costs four sums over the group: of the outputs of
attention and MLP in the forward pass, of the gradients of their inputs in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.shape import ModelShape

Kind = Literal["whole", "cut", "own heads"]
"""What a module computes with: all of its weights; its part of them; all of them, but for its part of the heads."""


def check_tensor_parallel(size: int, plan: TensorPlan | None, shape: ModelShape, kind: str, lora: bool) -> None:
    """ValueError, before weights are read, for a model that a group of this size cannot have.

    Args:
        kind: `model_type` of the config.
    """
    setting = f"trainer.strategy: tensor_parallel_size={size}"
    instead = "use tensor_parallel_size=1 (configs/strategy/fsdp.yaml)"
    if plan is None:
        raise ValueError(
            f"{setting} and model.source of model_type={kind!r}: its family has no tensor plan (Mixtures of Experts "
            f"have none); {instead}, or give the family one (docs/extending.md)"
        )
    if lora:
        raise ValueError(f"{setting} and model.lora are not supported together: {instead}, or set model.lora=null")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(shape, name)
        if count % size:
            raise ValueError(f"{setting} does not divide {name}={count} of the model ({kind!r}): use a divisor of it")


def cut_layer(layer: nn.Module, plan: TensorPlan, mesh: DeviceMesh) -> None:
    """Keep this process's part of each matrix of the plan, and compute with it; all weights are whole here before."""
    names = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
    if strange := sorted(names - set(plan.modules)):
        raise ValueError(f"the family's tensor plan does not name {strange[0]!r}, which has weights: name it there")
    for name in plan.columns:
        _cut(layer.get_submodule(name), mesh, weight=Shard(0), bias=Shard(0))
    for name in plan.rows:
        _cut(layer.get_submodule(name), mesh, weight=Shard(1), bias=Replicate())
        _run(layer.get_submodule(name), mesh, "cut", ends=True)
    for name in (*plan.entries, *plan.head_norms):
        _cut(layer.get_submodule(name), mesh, weight=Replicate())
    for name in plan.columns:
        _run(layer.get_submodule(name), mesh, "cut")
    for name in plan.head_norms:
        _run(layer.get_submodule(name), mesh, "own heads")
    for name in plan.entries:
        _run(layer.get_submodule(name), mesh, begins=True)


def keep_whole(module: nn.Module, mesh: DeviceMesh, called: bool = True) -> None:
    """A module outside of the layers, which every process of the group computes with whole.

    A table is cut over the group all the same where it can be, and gathered for its use.

    Args:
        called: its `forward` is; who uses the weight itself asks for `local_weight`.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    even = weight.dim() == 2 and len(weight) % mesh.size() == 0
    _cut(module, mesh, weight=Shard(0) if even else Replicate())
    if called:
        _run(module, mesh)


def local_weight(weight: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The whole of a weight that every process of a group computes with; of any other what it is.

    Each process has the same gradient of it, up to the last bits where kernels add in no fixed order: the mean of them
    is what all learn from, so that the copies stay one.
    """
    if not isinstance(weight, DTensor):
        return weight
    gathered = weight.redistribute(placements=[Replicate()])
    return _ScaledGradient.apply(gathered.to_local(grad_placements=[Partial()]), 1 / weight.device_mesh.size())


def _cut(module: nn.Module, mesh: DeviceMesh, **placements: Placement) -> None:
    """This process's part of the parameters in the place of those that are whole; no other process is asked."""
    for name, value in list(module.named_parameters(recurse=False)):
        placement, part = placements[name], value.detach()
        if isinstance(placement, Shard):
            part = part.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()]
        own = torch.empty(part.shape, dtype=part.dtype, device=mesh.device_type).copy_(part)
        setattr(
            module, name, nn.Parameter(DTensor.from_local(own, mesh, [placement], run_check=False), value.requires_grad)
        )


def _run(module: nn.Module, mesh: DeviceMesh, kind: Kind = "whole", begins: bool = False, ends: bool = False) -> None:
    """Have the module compute with plain tensors in the place of its parameters; `forward` is replaced on the instance.

    Args:
        begins, ends: the stream, which is whole, goes into what is cut, or what is cut into the stream.
    """
    forward, group = module.forward, mesh.get_group()

    def run(value: Tensor) -> Tensor:
        with _plain(module, kind) as parts:
            bias = parts.get("bias") if ends else None
            if bias is not None:
                module._parameters["bias"] = None  # once for all parts of the sum
            out = forward(value)
        if begins:
            out = _Begin.apply(out, group)
        if ends:
            out = _End.apply(out, group)
        return out if bias is None else out + bias

    module.forward = run


@contextmanager
def _plain(module: nn.Module, kind: Kind) -> Iterator[dict[str, Tensor]]:
    """Have the module's parameters be plain tensors within the block."""
    whole = dict(module._parameters)
    parts = {name: _part(value, kind) for name, value in whole.items() if value is not None}
    module._parameters.update(parts)  # type: ignore[arg-type]
    try:
        yield parts
    finally:
        module._parameters.update(whole)


def _part(value: Tensor, kind: Kind) -> Tensor:
    assert isinstance(value, DTensor), "FSDP2 has it here in full, but for what tensor parallelism cuts"
    if kind == "own heads":
        return value.to_local(grad_placements=[Partial()])
    return value.to_local() if kind == "cut" and not value.placements[0].is_replicate() else local_weight(value)


class _Begin(torch.autograd.Function):
    """The same; its gradient is the sum of what the processes of the group have of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _End(torch.autograd.Function):
    """The sum over the group; the gradient of each part is the sum's."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(value, group)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def _summed(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = value.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total
