"""Weights in flat buckets: many tensors as one run of bytes, beside a list of their names, dtypes and shapes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

Named = tuple[str, Tensor]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


FLOATS = torch.float64, torch.float32, torch.bfloat16, torch.float16
WHOLE = torch.int64, torch.int32, torch.bool  # of buffers
DTYPES = {dtype_name(dtype): dtype for dtype in (*FLOATS, *WHOLE)}
ALIGNMENT = 16
"""Bytes. Every tensor of a bucket begins at a multiple of it, so that its bytes can be viewed as its dtype."""


@dataclass(frozen=True)
class TensorEntry:
    """What has to be known of a tensor beside its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"weight {self.name!r} has dtype {self.dtype}: only {', '.join(DTYPES)} can be pushed")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def buckets(weights: Iterable[Named], limit: int) -> Iterator[list[Named]]:
    """Consecutive tensors of at most `limit` bytes together; a larger tensor has a bucket of its own."""
    bucket: list[Named] = []
    size = 0
    for name, value in weights:
        if bucket and size + value.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, value))
        size += aligned(value.nbytes)
    if bucket:
        yield bucket


def entries_of(bucket: list[Named]) -> list[TensorEntry]:
    return [TensorEntry(name, dtype_name(v.dtype), tuple(v.shape)) for name, v in bucket]


class Staging:
    """Lays buckets out as flat bytes.

    On the CPU each over the one before it, because new memory costs as much as the copy; on a GPU always in new
    memory, because its readers map it and may hold on to it.
    """

    def __init__(self) -> None:
        self.room = torch.empty(0, dtype=torch.uint8)

    def flatten(self, bucket: list[Named]) -> UInt8[Tensor, " bytes"]:
        """The bytes of a bucket as a uint8 tensor, on the device of its first tensor, complete on return."""
        flat = self._empty(sum(aligned(value.nbytes) for _, value in bucket), bucket[0][1].device)
        start = 0
        for _, value in bucket:
            flat[start : start + value.nbytes].view(value.dtype).view(value.shape).copy_(value)
            start += aligned(value.nbytes)
        if flat.is_cuda:
            torch.cuda.synchronize(flat.device)  # other threads and processes read it on other streams
        return flat

    def _empty(self, size: int, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.empty(size, dtype=torch.uint8, device=device)
        if len(self.room) < size:
            self.room = torch.empty(size, dtype=torch.uint8)
        return self.room[:size]


def flat_bytes(entries: list[TensorEntry]) -> int:
    """The length of the flat tensor of these entries."""
    return sum(aligned(entry.nbytes) for entry in entries)


def unflatten(flat: UInt8[Tensor, " bytes"], entries: list[TensorEntry]) -> Iterator[Named]:
    """The tensors of a bucket, as views of its bytes."""
    assert len(flat) == flat_bytes(entries)
    start = 0
    for entry in entries:
        yield entry.name, flat[start : start + entry.nbytes].view(DTYPES[entry.dtype]).view(entry.shape)
        start += aligned(entry.nbytes)


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
