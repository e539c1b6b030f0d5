"""The trainer's end of a weight push to one server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import aiohttp
import torch
from jaxtyping import UInt8
from torch import Tensor

from dirl.checked_json import to_json
from dirl.rollout.remote import cuda_ipc
from dirl.rollout.remote.engine_queue import in_thread
from dirl.rollout.remote.pair_group import PairGroup
from dirl.rollout.remote.relay_store import RelayStore
from dirl.rollout.remote.weight_messages import HEARTBEAT_S, MESSAGE_BYTES, Entry, Order, Reply, Transport
from dirl.rollout.remote.weight_transfer import TensorEntry, flat_bytes
from dirl.rollout.remote.wire import loads

CHUNK_BYTES = 1 << 20
"""The chunks of a bucket's bytes on their way through HTTP: larger ones are not faster."""


class WeightSender:
    """Its methods raise ValueError for what the server's engine refuses, and otherwise RuntimeError, OSError or
    aiohttp.ClientError; it is of no use after any of them.

    Args:
        url: of the server.
        timeout_s: limit of each step, be it a bucket or the wait for the engine's other work.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        socket: aiohttp.ClientWebSocketResponse,
        transport: Transport,
        timeout_s: float,
    ) -> None:
        self.session, self.url, self.socket = session, url, socket
        self.transport, self.timeout_s = transport, timeout_s
        self.group: PairGroup | None = None
        self.store: RelayStore | None = None
        self.done = False
        self.replies: asyncio.Queue[Reply | None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        # Between pushes too: heartbeats are answered by whoever reads.
        self.reading = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls, session: aiohttp.ClientSession, url: str, transport: Transport, device: torch.device, timeout_s: float
    ) -> "WeightSender":
        socket = await session.ws_connect(f"{url}/weights", heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES)
        sender = cls(session, url, socket, transport, timeout_s)
        try:
            if transport == "nccl":
                await sender._open_group("nccl", device)
        except BaseException:
            await sender.close()
            raise
        return sender

    @property
    def closed(self) -> bool:
        return self.socket.closed

    async def begin(self, run: str, policy_version: int) -> None:
        self.done = False
        await self._ask(Order("begin", run=run, policy_version=policy_version))

    async def send(self, entries: list[TensorEntry], flat: UInt8[Tensor, " bytes"]) -> None:
        """Return when the server's engine has taken the bucket."""
        if self.done:
            return
        assert len(flat) == flat_bytes(entries)
        handle = cuda_ipc.share(flat) if self.transport == "cuda_ipc" else None
        reply = await self._ask(Order("bucket", tensors=entries, handle=handle))
        if reply.kind == "send":
            reply, _ = await asyncio.gather(self._hear(), self._send_bytes(flat, reply.token))
        self.done = reply.kind == "done"  # an engine may want no more than it has

    async def end(self) -> None:
        if not self.done:
            await self._ask(Order("end"))

    async def close(self) -> None:
        if self.group is not None:
            self.group.close()
        await self.socket.close()
        self.reading.cancel()

    async def _send_bytes(self, flat: Tensor, token: str) -> None:
        if self.group is not None:
            await in_thread(lambda: self.group.send(flat))
            return
        view = (await in_thread(flat.cpu)).numpy().data
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(view))}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        address = f"{self.url}/weights/{token}"
        async with self.session.post(address, data=chunks(view), headers=headers, timeout=timeout) as response:
            if response.status != 200:
                raise ConnectionError(f"answered {response.status} to a bucket: {(await response.text())[:200]}")

    async def _open_group(self, backend: Literal["nccl", "gloo"], device: torch.device) -> None:
        store = self.store = RelayStore(self._tell, self.timeout_s)
        await self._ask(Order("group", timeout_s=self.timeout_s))
        self.group = await in_thread(lambda: PairGroup(store, 0, backend, device, self.timeout_s))

    def _tell(self, key: str, value: bytes) -> None:
        """Send an entry of the store to the server; called in a thread of the process group."""
        order = Order("store", entry=Entry(key, value.hex()))
        asyncio.run_coroutine_threadsafe(self.socket.send_str(to_json(order)), self.loop).result(self.timeout_s)

    async def _ask(self, order: Order) -> Reply:
        await self.socket.send_str(to_json(order))
        return await self._hear()

    async def _hear(self) -> Reply:
        async with asyncio.timeout(self.timeout_s):
            reply = await self.replies.get()
        if reply is None:
            raise ConnectionError("the connection broke in the middle of a weight push")
        if reply.failure is not None:
            raise (ValueError if reply.failure.kind == "ValueError" else RuntimeError)(reply.failure.message)
        return reply

    async def _read(self) -> None:
        """Read messages until the connection ends, by whatever; then None is the last."""
        try:
            async for message in self.socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                reply = loads(Reply, message.data)
                if reply.kind == "store":
                    self.store.arrive(reply.entry.key, bytes.fromhex(reply.entry.value))
                else:
                    self.replies.put_nowait(reply)
        finally:
            self.replies.put_nowait(None)


async def chunks(view: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]
