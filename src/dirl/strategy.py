"""FSDP2 by config: Lightning's ModelParallelStrategy with a mesh made of the trainer's devices and hosts."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dirl.checkpoints.files import clear_leftovers, flush, part_of, put_in_place, said_if_it_fails
from dirl.data_ranks import DATA, REPLICATE, SHARD, TENSOR
from dirl.ranges import at_least

ShardSize = Literal["all", "host"] | int


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes of the run, or over those of a host.

    Args:
        save_distributed_checkpoint: every rank saves its shard; False: one file, gathered on the first rank.
        timeout_minutes: of a collective; a rank may wait for the longest rollout of the others.
        shard_size: processes that one copy of the model is sharded over. `all` of them; those of a `host`, so that
            layers are gathered within hosts and gradients alone pass between them; or a number.
        tensor_parallel_size: processes that each matrix of a layer is cut over, beside one another on a host. They have
            the same data. 1: no tensor parallelism.
        cpu_offload: shards, gradients and optimizer state stay in host memory, where the optimizer works; a layer is on
            the device when it is its turn.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        timeout_minutes: int = 60,
        shard_size: ShardSize = "all",
        tensor_parallel_size: int = 1,
        cpu_offload: bool = False,
    ) -> None:
        at_least(1, "trainer.strategy", timeout_minutes=timeout_minutes, tensor_parallel_size=tensor_parallel_size)
        if isinstance(shard_size, int):
            at_least(1, "trainer.strategy", shard_size=shard_size)
        elif shard_size not in ("all", "host"):
            raise ValueError(f"trainer.strategy.shard_size={shard_size!r}: use all, host, or a number of processes")
        self.shard_size, self.cpu_offload = shard_size, cpu_offload
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def _configure_launcher(self) -> None:
        """Asked of before there is a second process: a mesh that does not fit is said once."""
        self._mesh_shape()
        super()._configure_launcher()

    def setup_environment(self) -> None:
        shape = self._mesh_shape()
        self._data_parallel_size = shape.replicas * shape.shards
        self._setup_distributed()
        self._device_mesh = shape.mesh(self.root_device.type)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    def _mesh_shape(self) -> "MeshShape":
        assert isinstance(self._tensor_parallel_size, int)
        return mesh_shape(self.num_nodes, self.num_processes, self.shard_size, self._tensor_parallel_size)

    def _get_process_group_backend(self) -> str:
        """What lies in host memory is reduced there too: the norm of the gradient."""
        usual = super()._get_process_group_backend()
        return "cpu:gloo,cuda:nccl" if self.cpu_offload and usual == "nccl" else usual

    def model_to_device(self) -> None:
        """Move the model, and of one that stays in host memory only what FSDP2 knows nothing of."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        module_of_run = self.lightning_module
        assert self.model is not None and module_of_run is not None
        for module in self.model.modules():
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else value.to(self.root_device)
        module_of_run._device = self.root_device  # as `LightningModule.to` would leave it

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        tensor = self.device_mesh[TENSOR].size()
        return {"num_replicas": self.world_size // tensor, "rank": self.global_rank // tensor}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """A folder of shards gets its name when all ranks have written theirs."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path, part = self.broadcast((Path(filepath), part_of(Path(filepath))))
        if self.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(path.parent)
        self.barrier()
        with said_if_it_fails(path, part):
            super().save_checkpoint(checkpoint, part, storage_options)
        self.barrier()
        if self.is_global_zero:
            for written in (*part.iterdir(), part):
                flush(written)
            put_in_place(part, path)
        self.barrier()


class MeshShape(NamedTuple):
    """A mesh of processes in the order of their numbers: those of a tensor-parallel group follow on one another."""

    replicas: int
    """Copies of the model."""
    shards: int
    """That each matrix of a copy, or what tensor parallelism leaves of it, is sharded into."""
    tensor: int
    hybrid: bool

    def mesh(self, device: str) -> DeviceMesh:
        """Make the mesh of all processes; a collective."""
        if self.hybrid:
            return init_device_mesh(device, self[:3], mesh_dim_names=(REPLICATE, SHARD, TENSOR))
        made = init_device_mesh(device, (self.shards, self.tensor), mesh_dim_names=(DATA, TENSOR))
        if self.tensor > 1:
            made[DATA, TENSOR]._flatten("all")  # the norm of the gradient is then one sum over all processes
            # That a gather over both takes two collectives is said once a run, and cannot be helped.
            logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        return made


def mesh_shape(hosts: int, per_host: int, shard_size: ShardSize, tensor: int) -> MeshShape:
    """ValueError, before anything is made, for numbers of processes that do not fit."""
    processes = hosts * per_host
    have = f"{processes} processes (trainer.num_nodes={hosts} x {per_host} devices)"
    if processes % tensor:
        raise ValueError(
            f"trainer.strategy: tensor_parallel_size={tensor} does not divide the {have}: use a divisor, or other "
            "numbers of hosts and devices"
        )
    if shard_size == "all":
        return MeshShape(1, processes // tensor, tensor, hybrid=False)
    if tensor > 1:
        raise ValueError(
            f"trainer.strategy: shard_size={shard_size} and tensor_parallel_size={tensor} are not supported together: "
            "use shard_size=all, or tensor_parallel_size=1"
        )
    shards = per_host if shard_size == "host" else int(shard_size)
    if processes % shards:
        raise ValueError(
            f"trainer.strategy: shard_size={shards} does not divide the {have}: use a divisor, or other numbers "
            "of hosts and devices"
        )
    return MeshShape(processes // shards, shards, 1, hybrid=True)
