"""FSDP2: the model sharded part by part, filled while it is sharded, and what was gathered given back."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from dirl.models import BlockDiffusionLM
from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.families.weights import named_tensors
from dirl.models.tensor_parallel import cut_layer, keep_whole
from dirl.models.weight_files import WeightFiles


def shard(
    model: BlockDiffusionLM,
    mesh: DeviceMesh,
    mixed: bool,
    files: WeightFiles | None = None,
    on_host: bool = False,
    tensor: DeviceMesh | None = None,
    plan: TensorPlan | None = None,
) -> None:
    """Shard embedding, every layer, last norm and head, each as a group that is gathered and reduced by itself.

    Args:
        mixed: compute and gathers in bf16, gradients reduced in fp32; the shards keep the model's dtype.
        files: where weights on the meta device come from; no process ever holds more than a layer of them.
        on_host: the shards stay in host memory, from where each layer comes when it is its turn.
        tensor: the processes that the matrices of a layer are cut over by the plan, before they are sharded.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if on_host and mesh.device_type == "cuda" else OffloadPolicy(),
    }
    embedding, head = model.part("embedding"), model.part("head")
    tied = head.weight is embedding.weight
    for index, layer in enumerate(model.layers()):
        if files is not None:
            files.fill(layer, f"{model.parts.layers}.{index}.")
        if tensor is not None:
            assert plan is not None, "who builds the model looks"
            cut_layer(layer, plan, tensor)
        fully_shard(layer, **options)
    # By itself: its reduction comes next after the head's, whose buffer FSDP2 keeps until the next reduction.
    _make_ready(model, "norm", files, tensor)
    fully_shard(model.part("norm"), reshard_after_forward=False, **options)
    _make_ready(model, "embedding", files, tensor)
    if tied:
        head.weight = embedding.weight
        _shard_tied(model, options)
    else:
        _shard_embedding(embedding, options)
        _make_ready(model, "head", files, tensor)
        fully_shard(head, reshard_after_forward=False, **options)  # the backward begins with it
        _run_within(head, model, "score_hidden")
    if files is not None:
        files.fill(model.backbone)
        left = [name for name, value in named_tensors(model) if value.is_meta]
        assert not left, f"weights without values: {left}"
    fully_shard(model, **options)


def _make_ready(model: BlockDiffusionLM, part: str, files: WeightFiles | None, tensor: DeviceMesh | None) -> None:
    """Shard what is in no layer one at a time: a table of the vocabulary is as large as some layers."""
    module = model.part(part)
    if files is not None:
        files.fill(module, f"{getattr(model.parts, part)}.")
    if tensor is not None:
        keep_whole(module, tensor, called=part != "head")


def reshard(model: nn.Module) -> None:
    """Give back what FSDP2 gathered: after a forward without backward the head is still here, perhaps in bf16."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _shard_embedding(embedding: nn.Module, options: dict) -> None:
    fully_shard(embedding, **options)
    assert isinstance(embedding, FSDPModule)
    embedding.set_unshard_in_backward(False)  # its gradient asks for the ids alone


def _shard_tied(model: BlockDiffusionLM, options: dict) -> None:
    """One tensor, hence one group, that of the module which holds both; its own forward is never called.

    Either use is a forward pass of the group, which is given back when the head's backward has ended. The gradient is
    reduced once, at the end: autograd adds the embedding's part to the head's before it hands it on.
    """
    backbone, first = model.backbone, model.layers()[0]
    fully_shard(backbone, reshard_after_forward=False, **options)
    _run_within(backbone, model.part("embedding"), "forward")
    _run_within(backbone, model, "score_hidden")
    assert isinstance(first, FSDPModule)
    first.set_modules_to_backward_prefetch([first])  # of none: the table would be gathered beside this layer's work


def _run_within(group: nn.Module, owner: nn.Module, method: str) -> None:
    """`owner.method` becomes a forward pass of the group: its weights are here for it, and for its backward.

    The method is replaced on the instance.
    """
    name = f"{type(owner).__name__}_{method}"
    setattr(group, name, getattr(owner, method))
    register_fsdp_forward_method(group, name)
    setattr(owner, method, getattr(group, name))
