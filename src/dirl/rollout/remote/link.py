"""One rollout server as a trainer sees it: whether it lives, what it is working on for us, and what it answers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
import torch

from dirl.checked_json import to_json
from dirl.rollout.remote.lease import busy
from dirl.rollout.remote.weight_sender import WeightSender
from dirl.rollout.remote.weight_transfer import DTYPES
from dirl.rollout.remote.wire import PROTOCOL, Call, Health, Line, Sleep, loads
from dirl.types import ModelSpec, Trajectory

log = logging.getLogger(__name__)

JSON = {"Content-Type": "application/json"}
LINE_BYTES = 1 << 26
"""Limit of one line of an answer; a trajectory has about 30 bytes a token."""


class ServerLostError(Exception):
    """This server gets no more work until the next weight push finds it in order."""


class ServerLink:
    """All of it runs on the event loop of the ServerEngine.

    Args:
        connect_timeout_s: limit of connecting, and of a health check.
        stall_timeout_s: limit of silence while the server has work of ours.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        spec: ModelSpec,
        connect_timeout_s: float,
        stall_timeout_s: float,
    ) -> None:
        self.url, self.session, self.spec = url, session, spec
        self.connect_timeout_s, self.stall_timeout_s = connect_timeout_s, stall_timeout_s
        self.run = ""
        """Whose work it is; known from the first push on."""
        self.health: Health | None = None
        """What the server said of itself at the last check."""
        self.alive = False
        self.reason = "it has not been reached yet"
        """Why it is not alive."""
        self.in_flight = 0
        """Requests of ours that it has not answered."""
        self.silent_s = 0.0
        """Seconds since the last trajectory or heartbeat; 0 without work."""
        self.heartbeat = 0
        """The heartbeat of its engine, as it was last heard of."""
        self.signs = 0
        """How many signs of life it has given so far."""
        self.calls: set[asyncio.Task] = set()
        self.sender: WeightSender | None = None

    async def check(self) -> Health:
        """Ask how it is; ServerLostError if it does not answer, ValueError if it does not fit this run."""
        with self.breaking():
            timeout = aiohttp.ClientTimeout(total=self.connect_timeout_s)
            async with self.session.get(f"{self.url}/health", timeout=timeout) as response:
                await self._accept(response)
                text = await response.read()
        with garbage():
            health = loads(Health, text)
        if health.protocol != PROTOCOL:
            raise ValueError(f"{self.url} speaks protocol {health.protocol}, not {PROTOCOL}: use one version of dirl")
        differences = [
            f"{name} is {there} there and {here} here"
            for name, here in vars(self.spec).items()
            if here != (there := getattr(health.spec, name))
        ]
        if differences:
            raise ValueError(
                f"{self.url} serves another model: {'; '.join(differences)}. Start it with this run's model"
            )
        if health.run not in (None, self.run):
            raise ServerLostError(busy(health.run))
        if self.health is not None and self.health.instance != health.instance:
            await self.drop_sender()
        self.health, self.heartbeat = health, health.heartbeat
        return health

    async def generate(self, call: Call, deliver: Callable[[str | None, Trajectory], None]) -> None:
        """Send one call and deliver what comes.

        Raises ServerLostError if it ends early, ValueError with the engine's words if its request was wrong.
        """
        done = False
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.connect_timeout_s)
        with self.breaking():
            body = to_json(call).encode()
            async with self.session.post(f"{self.url}/generate", timeout=timeout, data=body, headers=JSON) as response:
                await self._accept(response)
                async for text in lines(response.content):
                    with garbage():
                        line = loads(Line, text)
                    self.hear(line)
                    if line.trajectory is not None:
                        deliver(line.id, line.trajectory)
                    if line.failure is not None and line.failure.kind == "ValueError":
                        raise ValueError(f"{line.failure.message} (says {self.url})")
                    if line.failure is not None:
                        raise ServerLostError(line.failure.message)
                    done = line.done
        if not done:
            raise ServerLostError("its answer ended before the call was over")

    async def sleep(self, timeout_s: float) -> Health:
        with self.breaking():
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            body = to_json(Sleep(self.run)).encode()
            async with self.session.post(f"{self.url}/sleep", timeout=timeout, data=body, headers=JSON) as response:
                await self._accept(response)
                text = await response.read()
        with garbage():
            return loads(Health, text)

    def hear(self, line: Line) -> None:
        """Any growth of the engine's heartbeat is a sign of life, also where it works for another trainer process."""
        if line.trajectory is not None or line.heartbeat != self.heartbeat:
            self.silent_s = 0.0
            self.signs += 1
        self.heartbeat = line.heartbeat

    def listen(self, elapsed_s: float) -> None:
        """Let time pass; declare the server lost if it has been silent for too long."""
        self.silent_s = self.silent_s + elapsed_s if self.in_flight else 0.0
        if self.alive and self.silent_s > self.stall_timeout_s:
            self.lose(f"no progress for {self.stall_timeout_s:g} s (requests in work: {self.in_flight})")

    def lose(self, reason: str) -> None:
        """No more work for this server; what it was working on goes back to those who asked for it."""
        if self.alive:
            log.warning("rollout server %s is lost: %s; its unfinished requests go to the others", self.url, reason)
        self.alive, self.reason = False, reason
        for call in self.calls:
            if call is not asyncio.current_task():
                call.cancel()

    async def drop_sender(self) -> None:
        """Close the connection for weights; the next push opens another."""
        if self.sender is not None:
            sender, self.sender = self.sender, None
            await sender.close()

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Raise ServerLostError for trouble with the connection."""
        try:
            yield
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerLostError(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    async def _accept(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 401:
            raise ValueError(f"{self.url} refuses the API key: give this process the server's (see api_key_env)")
        if response.status == 400:
            raise ValueError(f"{await response.text()} (says {self.url})")
        if response.status != 200:
            raise ServerLostError(f"answered {response.status} {response.reason}: {(await response.text())[:200]}")


def check_url(url: str) -> str:
    """The url without a trailing slash; ValueError if it names no server."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError(f"engine.urls: {url!r} is no address of a server; write one like http://127.0.0.1:8100")
    return url.rstrip("/")


def common_dtype(links: Sequence[ServerLink]) -> torch.dtype | None:
    """The dtype of all engines whose servers are there; None: they differ, and each casts what comes by itself."""
    found = {link.health.dtype for link in links if link.alive}
    name = found.pop() if len(found) == 1 else None
    return None if name is None else DTYPES[name]


@contextmanager
def garbage() -> Iterator[None]:
    """Raise ServerLostError for what cannot be read."""
    try:
        yield
    except ValueError as error:
        raise ServerLostError(f"its answer cannot be read: {error}") from error


async def lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to a limit; the reader's own are short."""
    rest = bytearray()
    async for piece in content.iter_any():
        *whole, last = piece.split(b"\n")
        for part in whole:
            yield bytes(rest + part)
            rest.clear()
        rest += last
        if len(rest) > LINE_BYTES:
            raise ServerLostError(f"its answer has a line of more than {LINE_BYTES} bytes")
    if rest:
        raise ServerLostError("its answer broke off in a line")
