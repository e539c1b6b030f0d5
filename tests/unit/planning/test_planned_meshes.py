"""Peaks of sharded steps with copies, parts of matrices, and shards on the host, as planned and as counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch.distributed as dist
from tests.unit.planning.rehearsal import LiveBytes, Whole, fake_tensors
from tests.unit.planning.test_planned_memory import gradients, head_as_on_a_gpu, planned_peak, rehearsed_peak, shallow
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from dirl.data_ranks import data_mesh, tensor_mesh
from dirl.models.families import family_of
from dirl.models.shape import ModelShape
from dirl.modules.sharding import shard
from dirl.planning.memory import memory_by_moment
from dirl.planning.setup import TrainingSetup, gradients_bytes, policy_bytes
from dirl.strategy import MeshShape, mesh_shape

assert head_as_on_a_gpu, "a fixture of these tests too"


@contextmanager
def only_one_of(shape: MeshShape) -> Iterator[tuple[DeviceMesh, DeviceMesh | None]]:
    """The meshes for FSDP2 and for tensor parallelism, of processes of which only this one exists."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=shape.replicas * shape.shards * shape.tensor)
    plain = DeviceMesh._concatenate

    def of_real_numbers(meshes: list[DeviceMesh]) -> DeviceMesh:
        with unset_fake_temporarily():
            return plain(meshes)

    try:
        mesh = shape.mesh("cpu")
        with patch.object(DeviceMesh, "_concatenate", staticmethod(of_real_numbers)):
            yield data_mesh(mesh), tensor_mesh(mesh)
    finally:
        dist.destroy_process_group()


def counted(shape: ModelShape, mesh: MeshShape, mixed: bool, tokens: int, scored: int, mode: str) -> int:
    with only_one_of(mesh) as (data, tensor), fake_tensors():
        model, live = Whole(shape, mode), LiveBytes()
        plan = family_of(model.backbone.config).tensor_plan
        shard(model, data, mixed, tensor=tensor, plan=plan)
        live.hold([*model.parameters(), *gradients(model)])
        return rehearsed_peak(model, live, tokens, scored, mixed)


def setup_of(shape: ModelShape, mesh: MeshShape, mixed: bool, tokens: int, share: float, mode: str) -> TrainingSetup:
    devices, size = mesh.replicas * mesh.shards * mesh.tensor, mesh.shards if mesh.hybrid else None
    return TrainingSetup(
        shape, "fsdp2", devices, mixed, mode, tokens, share, shard_size=size, tensor=mesh.tensor
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mesh", "mixed", "tokens", "scored", "mode"),
    [
        ("sdar-8b", (2, 4, "host", 1), True, 16384, 5000, "full"),
        ("sdar-8b", (1, 8, "all", 2), True, 16384, 5000, "full"),
        pytest.param("sdar-4b", (1, 8, "all", 2), True, 16384, 5000, "none", marks=pytest.mark.thorough),
        pytest.param("sdar-8b", (1, 8, "all", 4), False, 4096, 1200, "selective", marks=pytest.mark.thorough),
        pytest.param("sdar-8b", (1, 8, "all", 2), True, 1024, 8, "full", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_step_on_a_mesh_is_planned_to_four_per_cent(
    name: str, mesh: tuple, mixed: bool, tokens: int, scored: int, mode: str
) -> None:
    shape, processes = shallow(name, 3), mesh_shape(*mesh)
    measured = counted(shape, processes, mixed, tokens, scored, mode)
    setup = setup_of(shape, processes, mixed, tokens, scored / tokens, mode)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.04)


@pytest.mark.thorough
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_step_from_the_host_is_what_is_counted_less_what_lies_there() -> None:
    """But for the shards of what is being gathered, which pass through the device."""
    shape, processes = shallow("sdar-8b", 3), mesh_shape(1, 8, "all", 1)
    setup = setup_of(shape, processes, True, 16384, 5000 / 16384, "full")
    measured = counted(shape, processes, True, 16384, 5000, "full") - policy_bytes(setup) - gradients_bytes(setup)
    moments = memory_by_moment(TrainingSetup(**{**vars(setup), "cpu_offload": True}), None, 0.0)
    assert max(sum(parts.values()) for parts in moments.values()) == pytest.approx(measured, rel=0.1)
