"""A further process of a tensor-parallel engine: a model agent on its GPU, which does what the first rank says.

It samples nothing: each denoising step's tokens come from the first rank, and so its sequences stay those of the first.
"""

import asyncio
import contextlib
import inspect
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from dirl.models import register_models
from dirl.rollout.lmdeploy import weights
from dirl.rollout.lmdeploy.logging import warnings_alone
from dirl.rollout.lmdeploy.rank_group import RankGroup, Seat, from_first
from dirl.rollout.remote.weight_transfer import TensorEntry, flat_bytes, unflatten

with warnings_alone():
    from dirl.rollout.lmdeploy.changes import ranked_agent
    from dirl.rollout.lmdeploy.sequences import Tracing

POLL_S = 0.001


def serve(seat: Seat, connection: Connection) -> None:
    """Main function of the process; it ends when it is told so, or when the first rank is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the first rank has them too, and decides
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(Follower(seat, connection).obey())
    except FirstRankGoneError:
        return
    except BaseException:
        with contextlib.suppress(OSError):
            connection.send(("failed", traceback.format_exc()))
        raise


class FirstRankGoneError(Exception):
    """Raised when the first rank's end of the connection is closed."""


class Follower:
    """Orders are pairs of a name and arguments; each but `forward` is answered with ("done", what it returned)."""

    def __init__(self, seat: Seat, connection: Connection) -> None:
        torch.cuda.set_device(seat.device)
        self.seat, self.connection = seat, connection
        self.orders: asyncio.Queue[tuple[str, tuple[Any, ...]] | None] = asyncio.Queue()
        self.agent: Any = None
        self.given = self.done = 0
        """Forwards that were ordered, and those that are done."""

    async def obey(self) -> None:
        # A thread of its own, so that the first rank never waits to be read while this one waits for it in a forward.
        threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True).start()
        self._answer(None)
        while (order := await self._while_working(self.orders.get())) is not None:
            name, arguments = order
            if name == "forward":
                self.given += 1
                self.agent.set_forward_inputs(*arguments)
                continue
            await self._while_working(self._idle())
            if name == "end":
                return
            self._answer(await self._do(name, *arguments))
        raise FirstRankGoneError

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        order: tuple[str, tuple[Any, ...]] | None = ("", ())
        while order is not None and order[0] != "end":
            try:
                order = self.connection.recv()
            except (EOFError, OSError):
                order = None
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self.orders.put_nowait, order)

    def _answer(self, value: Any) -> None:
        self.connection.send(("done", value))

    async def _while_working(self, wanted: Any) -> Any:
        """What is awaited, unless the agent's loop fails first."""
        waiting = asyncio.ensure_future(wanted)
        working = set() if self.agent is None else set(self.agent.tasks)
        await asyncio.wait({waiting, *working}, return_when=asyncio.FIRST_COMPLETED)
        for task in working:
            if task.done() and not waiting.done():
                task.result()
        return await waiting

    async def _idle(self) -> None:
        """What goes before an order in the first rank has been done here, too."""
        while self.done < self.given:
            await asyncio.sleep(POLL_S)

    async def _do(self, name: str, *arguments: Any) -> Any:
        if name == "join":
            return self._join(*arguments)
        if name == "load":
            return self._load(*arguments)
        if name == "finish":
            return weights.finish(self.agent)
        result = getattr(self.agent, name)(*arguments)
        return await result if inspect.isawaitable(result) else result

    def _join(self, parts: dict[str, Any]) -> None:
        register_models()  # transformers reads the model's config with its tokenizer
        self.group = RankGroup(self.seat)
        self.agent = ranked_agent(self.group, Tracing(self.seat.spec), parts)
        step = self.agent._async_step

        async def counted(**inputs: Any) -> None:
            await step(**inputs)
            self.done += 1

        self.agent._async_step = counted

    def _load(self, entries: list[TensorEntry]) -> None:
        flat = torch.empty(flat_bytes(entries), dtype=torch.uint8, device="cuda")
        from_first(self.group.group, flat)
        weights.load(self.agent, list(unflatten(flat, entries)))
