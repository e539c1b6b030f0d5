"""What a trainer and a rollout server say to each other in a weight push, over one WebSocket.

The trainer says `begin`, then `bucket` for each bucket, then `end`. The server answers `ready` when no call works on
its engine any more, `send` when it waits for a bucket's bytes, `taken` when the engine has them, and `done`. The bytes
go by HTTP (`POST /weights/TOKEN`), through a NCCL group of two, or stay where they are (CUDA IPC). The WebSocket is
kept for the next push, and with it the server: as long as it is open, no other run is served.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from dirl.rollout.remote.cuda_ipc import CudaHandle
from dirl.rollout.remote.weight_transfer import TensorEntry
from dirl.rollout.remote.wire import Failure

Transport = Literal["http", "nccl", "cuda_ipc"]

MESSAGE_BYTES = 1 << 26
"""Limit of one message: the names and shapes of a bucket."""
HEARTBEAT_S = 20.0
"""How often each end asks whether the other is still there."""


@dataclass(frozen=True)
class Entry:
    """A key that one end's process group set in its store, for the other end's."""

    key: str
    value: str
    """The value, in hexadecimal digits."""


@dataclass(frozen=True)
class Order:
    """What the trainer says."""

    kind: Literal["group", "store", "begin", "bucket", "end"]
    run: str = ""
    """With `begin`, the run that pushes (see `dirl.rollout.remote.lease`)."""
    policy_version: int = -1
    timeout_s: float = 0.0
    """The timeout of the NCCL group."""
    entry: Entry | None = None
    tensors: list[TensorEntry] = dataclasses.field(default_factory=list)
    handle: CudaHandle | None = None


@dataclass(frozen=True)
class Reply:
    """What the server says."""

    kind: Literal["group", "store", "ready", "send", "taken", "done", "failure"]
    token: str = ""
    """With `send`, where the bytes go: to /weights/TOKEN."""
    entry: Entry | None = None
    failure: Failure | None = None
