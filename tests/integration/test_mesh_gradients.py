"""Gradients of four processes, as two copies of two shards or as two shards of two parts of each matrix, equal those
of the unsharded model on all micro-batches."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.integration.test_fsdp_gradients import Found, build, rows, source, two_steps
from tests.processes import together
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from dirl.batches import PackedBatch
from dirl.data_ranks import data_mesh, tensor_mesh
from dirl.models import BlockDiffusionLM
from dirl.models.families import family_of
from dirl.modules.sharding import shard
from dirl.packing.rows import empty_batch
from dirl.strategy import mesh_shape

pytestmark = pytest.mark.thorough

PROCESSES = 4
STRATEGIES = {"hybrid": (2, 1), "fsdp_tp": ("all", 2)}
"""Shards of a copy and parts of a matrix, of two hosts of two devices each."""
CASES = [(name, tied) for name in STRATEGIES for tied in (True, False)]


def share(rank: int, tied: bool) -> list[PackedBatch]:
    """Of two processes that have something to learn from; the others only have to keep step."""
    batches = rows(tied)
    return batches[rank] if rank < len(batches) else [empty_batch(source(tied).describe().spec)] * len(batches[0])


def sharded_model(name: str, tied: bool) -> tuple[BlockDiffusionLM, DeviceMesh]:
    model, mesh = build(tied, "full"), mesh_shape(2, 2, *STRATEGIES[name]).mesh("cpu")
    plan = family_of(model.backbone.config).tensor_plan
    shard(model, data_mesh(mesh), mixed=False, tensor=tensor_mesh(mesh), plan=plan)
    return model, mesh


def process(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = []
    for name, tied in CASES:
        model, mesh = sharded_model(name, tied)
        parts = 1 if tensor_mesh(mesh) is None else 2
        found.append(two_steps(model, share(rank // parts, tied), "trajectory", scale=PROCESSES / parts))
        sizes = {n: p.to_local().numel() for n, p in model.named_parameters() if isinstance(p, DTensor)}
        found[-1]["elements"] = torch.tensor([sizes[f"backbone.model.layers.0.{n}.weight"] for n in NAMED])
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


NAMED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("mesh")
    together(process, str(folder), count=PROCESSES, folder=folder)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{tied}" for name, tied in CASES])
def test_four_processes_have_the_gradients_of_one(case: int, sharded: list[Found]) -> None:
    """To 1e-6 of a gradient's norm, as sums are taken in another order."""
    name, tied = CASES[case]
    found = dict(sharded[case])
    elements = found.pop("elements")
    wanted = two_steps(build(tied, "none"), list(itertools.chain(*rows(tied))), "trajectory", 1.0)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=2e-6 * float(value.norm()))
    layer = dict(build(tied, "none").backbone.model.layers[0].named_parameters())
    whole = torch.tensor([layer[f"{n}.weight"].numel() for n in NAMED])
    parts = torch.tensor([2, 2, 2, 2]) if name == "hybrid" else torch.tensor([4, 4, 4, 2])
    assert torch.equal(elements, whole // parts), "each process holds its part of a matrix, and no more"
