"""A model built for training or to be scored with: from one process's memory, or shard by shard from files."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from lightning.pytorch.plugins.precision import Precision
from torch.distributed.device_mesh import DeviceMesh

from dirl.attention.backend import Backend
from dirl.models import BlockDiffusionLM, ModelDescription, ModelSource
from dirl.models.families.weights import empty_backbone
from dirl.models.lora import LoRAConfig, add_adapters
from dirl.models.tensor_parallel import check_tensor_parallel
from dirl.models.value import ValueModel, with_scalar_head
from dirl.modules.layers import Checkpointing, cast_weights, compile_layers, recompute_layers
from dirl.modules.sharding import shard
from dirl.types import ModelSpec

PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class Building(NamedTuple):
    """Options of a module that shape its models; see `BlockDiffusionModule`."""

    attention: Backend
    head_chunk: int | None
    activation_checkpointing: Checkpointing
    compile_layers: bool


def build_model(
    source: ModelSource,
    description: ModelDescription,
    spec: ModelSpec,
    building: Building,
    mesh: DeviceMesh | None,
    tensor: DeviceMesh | None,
    mixed: bool,
    frozen: bool = False,
    on_host: bool = False,
    kind: type[BlockDiffusionLM] = BlockDiffusionLM,
    lora: LoRAConfig | None = None,
) -> BlockDiffusionLM:
    """A model of the description's family; sharded where there is a mesh, then read from files layer by layer.

    Args:
        tensor: the processes that a layer's matrices are cut over; None: they are not.
        mixed: compute is bf16 on fp32 weights.
        frozen: only to be scored with, so its weights have the dtype of compute; unsharded ones are on the host.
        on_host: sharded weights stay in host memory, see `dirl.modules.sharding.shard`.
        kind: a `ValueModel` has a head of its own.
        lora: adapters that learn on a backbone that is frozen, so it has the dtype of compute too.
    """
    family = description.family
    if tensor is not None:
        shape, kind_of_config = family.shape(description.config), description.config.model_type
        check_tensor_parallel(tensor.size(), family.tensor_plan, shape, kind_of_config, lora is not None)
    dtype = torch.bfloat16 if (frozen or lora is not None) and mixed else None
    files = source.weight_files(description.config) if mesh is not None else None
    if files is None:
        with torch.device("cpu") if frozen else nullcontext():
            backbone = source.build(description.config)
        if dtype is not None:
            cast_weights(backbone, dtype)
    else:
        files.dtype = dtype or files.dtype
        backbone = empty_backbone(family, description.config, files.dtype or torch.float32)
    if issubclass(kind, ValueModel):
        backbone = with_scalar_head(backbone, family.parts, next(backbone.parameters()).dtype)
    backbone.train(not frozen).requires_grad_(not frozen)
    if lora is not None:
        add_adapters(backbone, family, lora, source)
    model = kind(backbone, spec, building.attention, building.head_chunk, family.parts)
    recompute_layers(model.layers(), building.activation_checkpointing)
    if building.compile_layers:
        compile_layers(model.layers())
    if mesh is not None:
        shard(model, mesh, mixed, files, on_host, tensor, family.tensor_plan)
    return model


def check_precision(precision: str) -> None:
    """Raise ValueError for a precision of Lightning's in which training would not work."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={precision!r}: use one of {', '.join(PRECISIONS)}; small updates vanish in "
            "half-precision weights, and loss scaling is not supported"
        )


def keep_batches(plugin: Precision) -> None:
    """Steps go to the module as packing made them: that of double precision would rewrite batches, which are frozen.

    Log-probs and all that is made of them have the dtype of compute, whatever that of weights and columns of a row is.
    """
    plugin.convert_input = lambda data: data  # type: ignore[method-assign]


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for weights in half precision."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the model's weights are {dtype}, in which small updates vanish: set model.init_args.source."
            "init_args.dtype=float32 (compute is bf16 with trainer.precision=bf16-mixed)"
        )
