"""The server's end of one connection of a trainer that pushes weights."""

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Iterator
from queue import SimpleQueue
from typing import Literal

import aiohttp
import torch
from aiohttp import web
from torch import Tensor

from dirl.checked_json import to_json
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.remote import cuda_ipc
from dirl.rollout.remote.engine_queue import EngineQueue, in_thread
from dirl.rollout.remote.lease import Lease, LeaseError
from dirl.rollout.remote.pair_group import PairGroup
from dirl.rollout.remote.relay_store import RelayStore
from dirl.rollout.remote.weight_messages import Entry, Order, Reply
from dirl.rollout.remote.weight_transfer import Named, flat_bytes, unflatten
from dirl.rollout.remote.wire import Failure, loads

log = logging.getLogger(__name__)


class WeightReceiver:
    """Obeys the orders of one trainer process.

    Args:
        lease: of the engine; this connection holds it from the first push until it is closed.
        device: the engine's.
    """

    backend: Literal["nccl", "gloo"] = "nccl"
    """The backend of the group: gloo stands in for NCCL in tests."""

    def __init__(
        self,
        engine: RolloutEngine,
        queue: EngineQueue,
        lease: Lease,
        socket: web.WebSocketResponse,
        device: torch.device,
    ) -> None:
        self.engine, self.queue, self.lease, self.socket, self.device = engine, queue, lease, socket, device
        self.token = secrets.token_urlsafe(16)
        self.loop = asyncio.get_running_loop()
        self.group: PairGroup | None = None
        self.grouping: asyncio.Task | None = None
        self.store: RelayStore | None = None
        self.orders: SimpleQueue[Order | None] = SimpleQueue()
        self.room: Tensor | None = None
        """The room of the bucket that is waited for; its bytes come in another request."""
        self.arrival: asyncio.Future[None] | None = None
        self.work: set[asyncio.Task] = set()
        self.updating = self.left = False

    async def run(self) -> None:
        """Obey until the trainer leaves; then wait until the engine's thread has noticed."""
        try:
            async for message in self.socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise ValueError(f"a weight push is made of text messages, this one is {message.type.name}")
                self._obey(loads(Order, message.data))
        except (ValueError, RuntimeError, OSError, LeaseError) as error:
            await self._fail(error)
        finally:
            self._break_off()
            try:
                await asyncio.gather(*self.work, return_exceptions=True)  # they have told the trainer, if it was there
            finally:
                self.lease.give_back(self)

    async def take(self, content: aiohttp.StreamReader) -> None:
        """The bytes of the bucket that was asked for; ValueError if they are not as many, or nobody asked."""
        if self.arrival is None or self.arrival.done() or self.room is None:
            raise ValueError("no bucket is waited for")
        arrival, room, self.room = self.arrival, self.room.numpy().data, None
        try:
            await fill(room, content)
        except BaseException as error:  # the engine's thread waits for it, whatever it is
            if not arrival.done():
                arrival.set_exception(ConnectionError(f"the bytes of a bucket broke off: {error}"))
            raise
        if not arrival.done():
            arrival.set_result(None)

    def _obey(self, order: Order) -> None:
        if order.kind == "store" and order.entry is not None:
            self._the_store().arrive(order.entry.key, bytes.fromhex(order.entry.value))
        elif order.kind == "group":
            self.store = RelayStore(self._tell, order.timeout_s)
            self.grouping = self._start(self._open_group(order.timeout_s))
        elif order.kind != "begin":
            self.orders.put(order)
        elif self.updating:
            raise ValueError("a weight push began before the last one of the same connection was over")
        else:
            self.lease.take(order.run, self)
            self.orders, self.updating = SimpleQueue(), True
            self._start(self._update(order.policy_version))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task:
        task = asyncio.create_task(work)
        self.work.add(task)
        task.add_done_callback(self.work.discard)
        return task

    def _the_store(self) -> RelayStore:
        if self.store is None:
            raise ValueError("a key of a store came before the order to make a group")
        return self.store

    def _break_off(self) -> None:
        """What waits for this trainer ends, and what would begin to."""
        self.left = True
        self.orders.put(None)
        if self.group is not None:
            self.group.close()
        if self.arrival is not None and not self.arrival.done():
            self.arrival.set_exception(ConnectionError("the trainer left in the middle of a weight push"))

    async def _open_group(self, timeout_s: float) -> None:
        try:
            store = self._the_store()
            await self._say(Reply("group"))
            self.group = await in_thread(lambda: PairGroup(store, 1, self.backend, self.device, timeout_s))
        except (RuntimeError, OSError) as error:
            await self._fail(error)

    def _tell(self, key: str, value: bytes) -> None:
        """Send an entry of the store to the trainer; called in a thread of the process group."""
        self._say_from_thread(Reply("store", entry=Entry(key, value.hex())))

    async def _update(self, policy_version: int) -> None:
        try:
            await self.queue.run(lambda: self._apply(policy_version))
            self.updating = False
            await self._say(Reply("done"))
        except Exception as error:  # whatever the engine raised: the trainer is told, the server lives on
            await self._fail(error)

    def _apply(self, policy_version: int) -> None:
        """Apply an update, in the engine's thread. One that breaks off leaves version -1, which gets no work."""
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
        elif self.grouping is not None:
            self._say_from_thread(Reply("send"))
            group = asyncio.run_coroutine_threadsafe(self._grouped(self.grouping), self.loop).result()
            flat = group.receive(flat_bytes(order.tensors))
        else:
            flat = asyncio.run_coroutine_threadsafe(self._receive(flat_bytes(order.tensors)), self.loop).result()
        yield from unflatten(flat, order.tensors)
        if flat.is_cuda:
            torch.cuda.synchronize(flat.device)  # copies out of the trainer's memory have ended

    async def _grouped(self, grouping: asyncio.Task) -> PairGroup:
        await asyncio.wait([grouping])
        if self.group is None:
            raise ConnectionError("the group of this connection could not be made")
        return self.group

    async def _receive(self, size: int) -> Tensor:
        """Receive a bucket by HTTP, into memory of this host."""
        flat = self.room = torch.empty(size, dtype=torch.uint8)
        self.arrival = self.loop.create_future()
        if self.left:
            raise ConnectionError("the trainer left in the middle of a weight push")
        await self._say(Reply("send", token=self.token))
        await self.arrival
        return flat

    async def _fail(self, error: Exception) -> None:
        if isinstance(error, LeaseError):
            log.warning("a weight push was refused: %s", error)
            failure = Failure("refused", str(error))
        else:
            log.error("weight push failed", exc_info=error)
            failure = Failure.of(error)
        if not self.socket.closed:
            await self._say(Reply("failure", failure=failure))
            await self.socket.close()

    async def _say(self, reply: Reply) -> None:
        await self.socket.send_str(to_json(reply))

    def _say_from_thread(self, reply: Reply) -> None:
        asyncio.run_coroutine_threadsafe(self._say(reply), self.loop).result()


async def fill(room: memoryview, content: aiohttp.StreamReader) -> None:
    """Raise ValueError unless exactly as many bytes come as there is room for."""
    at = 0
    while piece := await content.readany():
        if at + len(piece) > len(room):
            raise ValueError(f"a bucket of {len(room)} bytes was announced, more came")
        room[at : at + len(piece)] = piece
        at += len(piece)
    if at < len(room):
        raise ValueError(f"a bucket of {len(room)} bytes was announced, {at} came")
