"""Experts under FSDP2: two processes, each with its own tokens, have the gradient of one process with all of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.processes import together
from tests.unit.models.test_experts import model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from dirl.modules.layers import cast_weights, recompute_layers

pytestmark = pytest.mark.slow

LENGTHS = (24, 40)
"""Of the rows of the two processes."""


def loss_of(backbone: PreTrainedModel, rank: int) -> Tensor:
    ids = (torch.arange(LENGTHS[rank])[None] * 7 + rank) % 64
    return backbone(input_ids=ids, use_cache=False).logits.double().sin().sum()


def sharded(folder: Path, mixed: bool) -> None:
    """One of two processes; the first writes the gathered gradients and the precision of the experts' input."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    backbone, mesh, seen = model(), init_device_mesh("cpu", (2,)), []
    recompute_layers(backbone.model.layers, "full")
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    for decoder in backbone.model.layers:
        decoder.mlp.experts.register_forward_hook(lambda module, args, out: seen.append(args[0].dtype))
        fully_shard(decoder, mesh=mesh, mp_policy=policy)
    fully_shard(backbone, mesh=mesh, mp_policy=policy)
    loss_of(backbone, rank).backward()
    gradients = {}
    for name, parameter in backbone.named_parameters():
        assert isinstance(parameter, DTensor) and parameter.dtype == torch.float32
        gradients[name] = parameter.grad.full_tensor()
    if rank == 0:
        torch.save((gradients, set(seen)), folder / "found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("mixed", [False, True])
def test_sharded_and_recomputed_experts_have_the_gradient_of_one_process(mixed: bool, tmp_path: Path) -> None:
    together(sharded, tmp_path, mixed, count=2, folder=tmp_path)
    found, dtypes = torch.load(tmp_path / "found.pt")
    assert dtypes == {torch.bfloat16 if mixed else torch.float32}
    plain = model()
    if mixed:
        cast_weights(plain, torch.bfloat16)
    for rank in range(2):
        (loss_of(plain, rank) / 2).backward()
    for name, parameter in plain.named_parameters():
        wanted = parameter.grad.float()
        # In bf16 the one process adds the two gradients in bf16, and rounds once more.
        assert (found[name] - wanted).norm() <= (0.01 if mixed else 1e-5) * wanted.norm(), name
