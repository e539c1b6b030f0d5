"""Meshes of hosts and devices, and what does not fit into one."""

import pytest

from dirl.strategy import FSDP2Strategy, MeshShape, mesh_shape


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ((1, 8, "all", 1), MeshShape(1, 8, 1, False)),
        ((16, 8, "all", 1), MeshShape(1, 128, 1, False)),
        ((16, 8, "host", 1), MeshShape(16, 8, 1, True)),
        ((1, 8, "host", 1), MeshShape(1, 8, 1, True)),
        ((2, 8, 4, 1), MeshShape(4, 4, 1, True)),
        ((2, 8, "all", 2), MeshShape(1, 8, 2, False)),
        ((1, 2, "all", 2), MeshShape(1, 1, 2, False)),
    ],
)
def test_a_mesh_has_all_processes(asked: tuple, shape: MeshShape) -> None:
    assert mesh_shape(*asked) == shape
    assert shape.replicas * shape.shards * shape.tensor == asked[0] * asked[1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            (1, 3, "all", 2),
            r"tensor_parallel_size=2 does not divide the 3 processes \(trainer.num_nodes=1 x 3 devices\)",
        ),
        ((2, 4, 3, 1), r"shard_size=3 does not divide the 8 processes \(trainer.num_nodes=2 x 4 devices\)"),
        ((1, 4, 16, 1), "shard_size=16 does not divide the 4 processes"),
        ((2, 4, "host", 2), "shard_size=host and tensor_parallel_size=2 are not supported together"),
    ],
)
def test_processes_that_do_not_fit_are_named_with_the_setting(asked: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mesh_shape(*asked)


@pytest.mark.parametrize("options", [{"shard_size": "node"}, {"shard_size": 0}, {"tensor_parallel_size": 0}])
def test_options_that_mean_nothing_are_refused(options: dict) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"strategy.{name}="):
        FSDP2Strategy(**options)


def test_a_strategy_of_two_parts_and_one_process_is_refused_before_there_is_a_second(tmp_path) -> None:
    from lightning.pytorch import Trainer

    with pytest.raises(ValueError, match="tensor_parallel_size=2 does not divide the 3 processes"):
        Trainer(accelerator="cpu", devices=3, strategy=FSDP2Strategy(tensor_parallel_size=2), default_root_dir=tmp_path)
