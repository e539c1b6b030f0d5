"""The process group of a tensor-parallel engine, apart from torch's default group, and LMDeploy's view of it.

The trainer's or server's process is the engine's first rank. Had it a default group, all that asks torch for the number
of training processes would take the engine's ranks for them.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import BroadcastOptions, FileStore, ProcessGroupGloo

from dirl.types import ModelSpec

BACKEND = "nccl"
"""gloo stands in for it in tests."""
TIMEOUT = timedelta(minutes=10)
"""Limit of one operation of the group. NCCL's watchdog ends a process whose operation takes longer."""


@dataclass(frozen=True)
class Seat:
    """One rank's place in an engine."""

    rank: int
    size: int
    device: int
    """Index of its CUDA device."""
    folder: str
    """Where the ranks find one another, by a file; nothing listens."""
    spec: ModelSpec


class RankGroup:
    """All ranks of an engine; the constructor returns when all are there."""

    def __init__(self, seat: Seat) -> None:
        self.rank, self.size = seat.rank, seat.size
        store = FileStore(str(Path(seat.folder) / "ranks"), seat.size)
        self.group: Any = _nccl(store, seat) if BACKEND == "nccl" else _gloo(store, seat)

    def context(self, dist_config: Any) -> Any:
        """What LMDeploy's layers and model agent ask for their rank and their group."""
        from lmdeploy.pytorch.distributed import DistContext, DistGroup

        ranks = DistGroup(rank=self.rank, gpu_group=self.group)
        parts = {f"{part}tp_group": ranks for part in ("", "attn_", "mlp_", "moe_")}
        return DistContext(rank=self.rank, dist_config=dist_config, **parts)

    def abort(self) -> None:
        """End whatever waits for a rank that is gone."""
        self.group.abort()


def from_first(group: Any, *values: Shaped[Tensor, "..."]) -> None:
    """The values of the first rank, written into those of all others; on a GPU in the order of its stream."""
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    for work in [group.broadcast([value], options) for value in values]:
        work.wait()


def _gloo(store: FileStore, seat: Seat) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout, options._threads = TIMEOUT, 1  # one: operations are done in the order of their calls
    return ProcessGroupGloo(store, seat.rank, seat.size, options)


def _nccl(store: FileStore, seat: Seat) -> Any:
    from torch.distributed import ProcessGroupNCCL  # not part of a build for CPU

    options = ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT
    return ProcessGroupNCCL(store, seat.rank, seat.size, options)


def first_device(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
