"""Tensors of another process on the same GPU host, mapped by CUDA IPC handles that travel as plain JSON."""

import base64
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class CudaHandle:
    """What torch needs to map a storage; the bytes are in base64."""

    uuid: str
    """The GPU's own id: its number differs between processes."""
    memory: str
    size: int
    offset: int
    counter: str
    counter_offset: int
    event: str
    event_sync: bool


def visible_gpus() -> tuple[str, ...]:
    """UUIDs of the GPUs that this process sees, by their number."""
    return tuple(str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count()))


def share(flat: UInt8[Tensor, " bytes"]) -> CudaHandle:
    """A handle for one reader, of the whole storage. `flat` may then go: torch counts the reader's use of it, too."""
    _, memory, size, offset, counter, counter_offset, event, event_sync = flat.untyped_storage()._share_cuda_()
    uuid = visible_gpus()[flat.device.index]
    return CudaHandle(uuid, text(memory), size, offset, text(counter), counter_offset, text(event), bool(event_sync))


def attach(handle: CudaHandle) -> UInt8[Tensor, " bytes"]:
    """The bytes behind a handle as a uint8 tensor, without a copy."""
    visible = visible_gpus()
    if handle.uuid not in visible:
        raise ValueError(f"the weights are on GPU {handle.uuid}, which this server does not see: use transport=nccl")
    index = visible.index(handle.uuid)
    torch.cuda.init()
    storage = torch.UntypedStorage._new_shared_cuda(
        index,
        base64.b64decode(handle.memory),
        handle.size,
        handle.offset,
        base64.b64decode(handle.counter),
        handle.counter_offset,
        base64.b64decode(handle.event),
        handle.event_sync,
    )
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{index}").set_(storage, 0, (storage.nbytes(),), (1,))


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()
