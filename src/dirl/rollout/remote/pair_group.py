"""A process group of two, through which one trainer sends bytes from its GPU to a server's, by NCCL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupNCCL  # not part of a build for CPU


class PairGroup:
    """A process group of a trainer (rank 0, which sends) and one server (rank 1), apart from all other groups.

    Args:
        store: by which the two find one another; both have to come within `timeout_s`.
        backend: nccl carries CUDA tensors between two GPUs; gloo, between CPUs, stands in for it in tests.
        device: where the bytes are sent from or arrive.
        timeout_s: limit of one transfer.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        backend: Literal["nccl", "gloo"],
        device: torch.device,
        timeout_s: float,
    ) -> None:
        self.store, self.device, self.timeout = store, device, timedelta(seconds=timeout_s)
        make = _nccl_group if backend == "nccl" else _gloo_group
        self.group: ProcessGroupGloo | ProcessGroupNCCL | None = make(store, rank, self.timeout)

    def send(self, flat: UInt8[Tensor, " bytes"]) -> None:
        """Blocks until the bytes are sent; RuntimeError if the other side is gone or too slow."""
        flat = flat.to(self.device)
        with _current(self.device):
            self._open().send([flat], 1, 0).wait(self.timeout)

    def receive(self, size: int) -> UInt8[Tensor, " bytes"]:
        """The next `size` bytes of the other side."""
        flat = torch.empty(size, dtype=torch.uint8, device=self.device)
        with _current(self.device):
            self._open().recv([flat], 0, 0).wait(self.timeout)
        return flat

    def close(self) -> None:
        """The other side's transfers, waiting or to come, then fail; gloo leaves this side's own to their limit."""
        if self.group is not None:
            group, self.group = self.group, None  # gloo closes its connection with the last reference
            group.abort()

    def _open(self) -> "ProcessGroupGloo | ProcessGroupNCCL":
        if self.group is None:
            raise ConnectionError("the process group was closed")
        return self.group


def _gloo_group(store: Store, rank: int, timeout: timedelta) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout, options._threads = timeout, 1
    return ProcessGroupGloo(store, rank, 2, options)


def _nccl_group(store: Store, rank: int, timeout: timedelta) -> "ProcessGroupNCCL":
    from torch.distributed import ProcessGroupNCCL  # not part of a build for CPU

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    # Read when the group is made: wait() then blocks and raises. Otherwise NCCL's watchdog ends this whole process
    # when the other one dies.
    with _environment("TORCH_NCCL_BLOCKING_WAIT", "1"):
        return ProcessGroupNCCL(store, rank, 2, options)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
