"""Gradients of two FSDP2 processes equal those of the unsharded model on all their micro-batches.

So do those of two copies of the model, and of two processes that each have a part of each matrix.
"""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.packed import group_pieces
from tests.processes import together
from tests.tiny import TinyModel, prompt, sample_groups
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dirl.batches import PackedBatch
from dirl.data_ranks import data_mesh, tensor_mesh
from dirl.models import BlockDiffusionLM
from dirl.models.families import family_of
from dirl.models.policy import Likelihood
from dirl.modules.layers import Checkpointing, recompute_layers
from dirl.modules.optimization import clip_gradients
from dirl.modules.sharding import reshard, shard
from dirl.packing.rows import empty_batch, pack
from dirl.strategy import mesh_shape
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.4, max_response_tokens=9)
PROCESSES = 2
CASES: list[tuple[bool, Likelihood, Checkpointing]] = list(
    itertools.product((True, False), ("tokens", "trajectory"), ("none", "full"))
)
MESHES = ["hybrid", "fsdp_tp"]
"""Of two processes that are two copies; or a tensor-parallel group, which has all rows on each."""
Found = dict[str, Tensor]


def source(tied: bool) -> TinyModel:
    return TinyModel(tied=tied)


def rows(tied: bool) -> list[list[PackedBatch]]:
    """Three micro-batches for each process; one process has nothing to learn from its last."""
    spec = source(tied).describe().spec
    groups = sample_groups(source(tied), [prompt(n) for n in (6, 3, 9, 4, 8)], 2, PARAMS)
    packed = [pack([s], 1000)[0] for group in groups for s in group_pieces(group, spec)]
    assert len(packed) == 5
    return [packed[:3], [*packed[3:5], empty_batch(spec)]]


def two_steps(model: BlockDiffusionLM, batches: list[PackedBatch], likelihood: Likelihood, scale: float) -> Found:
    """Scores, clipped gradients of the second step and the norm before clipping; the first step moves the weights."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for step in range(2):
        optimizer.zero_grad()
        for batch in batches:
            scores = model(batch, PARAMS, likelihood, entropy=step == 0)
            (scale * (scores.logprobs.sum() + 0.5 * scores.log_factors.sum())).backward()
        norm = clip_gradients(parameters, 1.0)
        with torch.no_grad():  # a pass between backward and step, as an old policy's or a validation's
            old = model(batches[0], PARAMS, likelihood, entropy=False)
        reshard(model)
        if step == 0:
            optimizer.step()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
    return {**whole, "norm": norm, "old log-probs": old.logprobs}


def build(tied: bool, mode: Checkpointing) -> BlockDiffusionLM:
    """In double precision: in single, gradients of few numbers, sums of many, are rounded by 3e-6 of their norm."""
    description = source(tied).describe()
    backbone = source(tied).build(description.config).double().train()
    recompute_layers(backbone.model.layers, mode)
    return BlockDiffusionLM(backbone, description.spec, "dense")


def process(folder: str) -> None:
    """All cases one after the other; the first process writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    found = []
    for tied, likelihood, mode in CASES:
        model = build(tied, mode)
        shard(model, mesh, mixed=False)
        found.append(two_steps(model, rows(tied)[rank], likelihood, scale=PROCESSES))  # FSDP2 takes the mean
    for name in MESHES:
        model = build(True, "full")
        copies = mesh_shape(PROCESSES, 1, "host" if name == "hybrid" else "all", 1 if name == "hybrid" else PROCESSES)
        whole = copies.mesh("cpu")
        plan = family_of(model.backbone.config).tensor_plan
        shard(model, data_mesh(whole), mixed=False, tensor=tensor_mesh(whole), plan=plan)
        batches = rows(True)[rank] if name == "hybrid" else list(itertools.chain(*rows(True)))
        found.append(two_steps(model, batches, "trajectory", scale=copies.replicas * copies.shards))
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("fsdp")
    together(process, str(folder), count=PROCESSES, folder=folder)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_two_processes_have_the_gradients_of_one(case: int, sharded: list[Found]) -> None:
    """Tied and untied, over micro-batches, clipping, an optimizer step, and passes without gradient; to 1e-8 of a
    gradient's norm, as sums are taken in another order (seen: 4e-16)."""
    tied, likelihood, mode = CASES[case]
    wanted = two_steps(build(tied, mode), list(itertools.chain(*rows(tied))), likelihood, 1.0)
    assert sharded[case].keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(sharded[case][name], value, rtol=0, atol=1e-8 * float(value.norm()))


@pytest.mark.parametrize("name", MESHES)
def test_copies_and_parts_of_matrices_have_the_gradients_of_one(name: str, sharded: list[Found]) -> None:
    """To 1e-8 of a gradient's norm (seen: 7e-16)."""
    found = sharded[len(CASES) + MESHES.index(name)]
    wanted = two_steps(build(True, "full"), list(itertools.chain(*rows(True))), "trajectory", 1.0)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-8 * float(value.norm()))


def test_likelihoods_differ(sharded: list[Found]) -> None:
    """The factors have a part in the gradient."""
    tokens, trajectory = (sharded[CASES.index((True, which, "none"))] for which in ("tokens", "trajectory"))
    assert not torch.allclose(tokens["norm"], trajectory["norm"], rtol=1e-3)
