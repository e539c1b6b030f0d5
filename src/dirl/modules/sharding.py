"""FSDP2: the model sharded layer by layer, filled while it is sharded, and what was gathered given back."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from dirl.models import BlockDiffusionLM
from dirl.models.weight_files import WeightFiles


def shard(
    model: BlockDiffusionLM,
    mesh: DeviceMesh,
    mixed: bool,
    files: WeightFiles | None = None,
    on_host: bool = False,
) -> None:
    """Shard layer by layer, then the rest.

    Args:
        mixed: compute and gathers in bf16, gradients reduced in fp32; the shards keep the model's dtype.
        files: where weights on the meta device come from; no process ever holds more than a layer of them.
        on_host: the shards stay in host memory, from where each layer comes when it is its turn.
    """
    options = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if on_host and mesh.device_type == "cuda" else OffloadPolicy(),
    }
    for index, layer in enumerate(model.backbone.model.layers):
        if files is not None:
            files.fill(layer, f"model.layers.{index}.")
        fully_shard(layer, **options)
    if files is not None:
        files.fill(model.backbone)
        model.backbone.tie_weights()
        left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        assert not left, f"weights without values: {left}"
    fully_shard(model, **options)


def reshard(model: BlockDiffusionLM) -> None:
    """Give back what FSDP2 gathered: after a forward without backward the root holds copies, perhaps in bf16."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
