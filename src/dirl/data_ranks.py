"""Which share of the data a process has: the processes of one tensor-parallel group have the same."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor_parallel"
DATA = "data_parallel"
"""Names of the dimensions of a device mesh; a mesh has `data_parallel`, or `replicate` and `shard` in its place."""


class DataRank(NamedTuple):
    """A process among those that have different data, and the group that it shares its own with."""

    rank: int
    size: int
    tensor_size: int = 1
    """Processes of a tensor-parallel group; their numbers follow on one another."""
    mesh: "DeviceMesh | None" = None

    @property
    def group(self) -> "ProcessGroup | None":
        """One process of each tensor-parallel group; None: all processes."""
        return None if self.tensor_size == 1 or self.mesh is None else self.mesh[DATA].get_group()

    @property
    def leads(self) -> bool:
        """Whether it is the first of its tensor-parallel group."""
        return self.tensor_size == 1 or self.mesh is None or self.mesh[TENSOR].get_local_rank() == 0


def data_rank(trainer: Any) -> DataRank:
    """The share of the data of the process that this trainer runs in, by the mesh of its strategy."""
    mesh: DeviceMesh | None = getattr(getattr(trainer, "lightning_module", None), "device_mesh", None)
    tensor = tensor_mesh(mesh)
    tensor_size = 1 if tensor is None else tensor.size()
    return DataRank(trainer.global_rank // tensor_size, trainer.world_size // tensor_size, tensor_size, mesh)


def data_mesh(mesh: "DeviceMesh") -> "DeviceMesh":
    """What FSDP2 is given: the dimension of shards, behind that of copies where there is one."""
    return mesh[DATA] if DATA in (mesh.mesh_dim_names or ()) else mesh[REPLICATE, SHARD]


def tensor_mesh(mesh: "DeviceMesh | None") -> "DeviceMesh | None":
    """The mesh of the processes that a matrix is cut over; None: it is not."""
    if mesh is None or TENSOR not in (mesh.mesh_dim_names or ()):
        return None
    found = mesh[TENSOR]
    return found if found.size() > 1 else None
