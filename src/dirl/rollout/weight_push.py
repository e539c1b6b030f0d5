"""A weight push, both ends: orders and replies over a WebSocket, bytes over a process group or CUDA IPC.

The trainer says `begin`, then `bucket` for each bucket, then `end`. The server answers `ready` when no call works
on its engine any more, `send` when it waits for a bucket's bytes, `taken` when the engine has them, and `done`.
The connection and its group are kept for the next push; whoever breaks off closes them.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

import aiohttp
import torch
from aiohttp import web
from torch import Tensor

from dirl.rollout import cuda_ipc
from dirl.rollout.cuda_ipc import CudaHandle
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.engine_turns import EngineTurns, in_thread
from dirl.rollout.pair_group import PairGroup, connect, listen
from dirl.rollout.weight_transfer import Named, TensorEntry, flat_bytes, unflatten
from dirl.rollout.wire import Failure, dumps, loads

log = logging.getLogger(__name__)

Transport = Literal["gloo", "nccl", "cuda_ipc"]
MESSAGE_BYTES = 1 << 26
"""Limit of one message: the names and shapes of a bucket."""


@dataclass(frozen=True)
class Order:
    """What the trainer says."""

    kind: Literal["group", "begin", "bucket", "end"]
    backend: Literal["gloo", "nccl"] | None = None
    timeout_s: float = 0.0
    """Of the group."""
    policy_version: int = -1
    tensors: list[TensorEntry] = dataclasses.field(default_factory=list)
    handle: CudaHandle | None = None


@dataclass(frozen=True)
class Reply:
    """What the server says."""

    kind: Literal["group", "ready", "send", "taken", "done", "failure"]
    port: int = 0
    """Of the group's store."""
    failure: Failure | None = None


class WeightSender:
    """The trainer's end. Its methods raise ValueError for what the server's engine refuses, and otherwise
    RuntimeError, OSError or aiohttp.ClientError; it is of no use after any of them.

    Args:
        timeout_s: limit of each step, be it a bucket or the wait for the engine's other work.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, transport: Transport, timeout_s: float) -> None:
        self.socket, self.transport, self.timeout_s = socket, transport, timeout_s
        self.group: PairGroup | None = None
        self.done = False

    @classmethod
    async def open(
        cls, session: aiohttp.ClientSession, url: str, transport: Transport, device: torch.device, timeout_s: float
    ) -> "WeightSender":
        socket = await session.ws_connect(f"{url}/weights", heartbeat=20, max_msg_size=MESSAGE_BYTES)
        sender = cls(socket, transport, timeout_s)
        try:
            if transport != "cuda_ipc":
                await sender._open_group(transport, device)
        except BaseException:
            await sender.close()
            raise
        return sender

    @property
    def closed(self) -> bool:
        return self.socket.closed

    async def begin(self, policy_version: int) -> None:
        self.done = False
        await self._ask(Order("begin", policy_version=policy_version))

    async def send(self, entries: list[TensorEntry], flat: Tensor) -> None:
        """Return when the server's engine has taken the bucket."""
        if self.done:
            return
        assert len(flat) == flat_bytes(entries)  # gloo ends the receiving process if it is not
        handle = cuda_ipc.share(flat) if self.transport == "cuda_ipc" else None
        reply = await self._ask(Order("bucket", tensors=entries, handle=handle))
        if reply.kind == "send":
            reply, _ = await asyncio.gather(self._hear(), in_thread(lambda: self.group.send(flat)))
        self.done = reply.kind == "done"  # an engine may want no more than it has

    async def end(self) -> None:
        if not self.done:
            await self._ask(Order("end"))

    async def close(self) -> None:
        if self.group is not None:
            self.group.close()
        await self.socket.close()

    async def _open_group(self, backend: Literal["gloo", "nccl"], device: torch.device) -> None:
        reply = await self._ask(Order("group", backend=backend, timeout_s=self.timeout_s))
        here, there = (self.socket.get_extra_info(name)[0] for name in ("sockname", "peername"))
        carrier = device if backend == "nccl" else torch.device("cpu")

        def join() -> PairGroup:
            store = connect(there, reply.port, self.timeout_s)
            return PairGroup(store, 0, backend, here, carrier, self.timeout_s)

        self.group = await in_thread(join)

    async def _ask(self, order: Order) -> Reply:
        await self.socket.send_str(dumps(order))
        return await self._hear()

    async def _hear(self) -> Reply:
        async with asyncio.timeout(self.timeout_s):
            message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError("the connection broke in the middle of a weight push")
        reply = loads(Reply, message.data)
        if reply.failure is not None:
            raise (ValueError if reply.failure.kind == "ValueError" else RuntimeError)(reply.failure.message)
        return reply


class WeightReceiver:
    """The server's end of one connection.

    Args:
        address: of this host, as the trainer reached it.
        device: the engine's.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        turns: EngineTurns,
        socket: web.WebSocketResponse,
        address: str,
        device: torch.device,
    ) -> None:
        self.engine, self.turns, self.socket, self.address, self.device = engine, turns, socket, address, device
        self.loop = asyncio.get_running_loop()
        self.group: PairGroup | None = None
        self.orders: SimpleQueue[Order | None] = SimpleQueue()
        self.update: asyncio.Task | None = None

    async def run(self) -> None:
        """Obey until the trainer leaves; then wait until the engine's thread has noticed."""
        try:
            async for message in self.socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise ValueError(f"a weight push is made of text messages, this one is {message.type.name}")
                await self._obey(loads(Order, message.data))
        except (ValueError, RuntimeError, OSError) as error:
            await self._fail(error)
        finally:
            self.orders.put(None)
            if self.group is not None:
                self.group.close()
            if self.update is not None:
                await self.update

    async def _obey(self, order: Order) -> None:
        if order.kind == "group":
            await self._open_group(order)
        elif order.kind != "begin":
            self.orders.put(order)
        elif self.update is not None and not self.update.done():
            raise ValueError("a weight push began before the last one of the same connection was over")
        else:
            self.orders = SimpleQueue()
            self.update = asyncio.create_task(self._update(order.policy_version))

    async def _open_group(self, order: Order) -> None:
        store = listen(self.address, order.timeout_s)
        await self._say(Reply("group", port=store.port))
        carrier = self.device if order.backend == "nccl" else torch.device("cpu")
        self.group = await in_thread(lambda: PairGroup(store, 1, order.backend, self.address, carrier, order.timeout_s))

    async def _update(self, policy_version: int) -> None:
        try:
            await self.turns.run(lambda: self._apply(policy_version))
            await self._say(Reply("done"))
        except Exception as error:  # whatever the engine raised: the trainer is told, the server lives on
            await self._fail(error)

    def _apply(self, policy_version: int) -> None:
        """In the engine's thread. An update that breaks off leaves version -1, which gets no work."""
        self.engine.policy_version = -1
        self._say_from_thread(Reply("ready"))
        try:
            self.engine.update_weights(self._arriving(), policy_version)
        except BaseException:
            self.engine.policy_version = -1
            raise

    def _arriving(self) -> Iterator[Named]:
        while (order := self.orders.get()) is not None and order.kind == "bucket":
            yield from self._bucket(order)
            self._say_from_thread(Reply("taken"))
        if order is None:
            raise ConnectionError("the trainer left in the middle of a weight push")

    def _bucket(self, order: Order) -> Iterator[Named]:
        if order.handle is not None:
            flat = cuda_ipc.attach(order.handle)
        else:
            self._say_from_thread(Reply("send"))
            flat = self.group.receive(flat_bytes(order.tensors))
        yield from unflatten(flat, order.tensors)
        if flat.is_cuda:
            torch.cuda.synchronize(flat.device)  # copies out of the trainer's memory have ended

    async def _fail(self, error: Exception) -> None:
        log.error("weight push failed", exc_info=error)
        failure = Failure.of(error)
        if not self.socket.closed:
            await self._say(Reply("failure", failure=failure))
            await self.socket.close()

    async def _say(self, reply: Reply) -> None:
        await self.socket.send_str(dumps(reply))

    def _say_from_thread(self, reply: Reply) -> None:
        asyncio.run_coroutine_threadsafe(self._say(reply), self.loop).result()
