"""The queue for a server's engine: calls are served in their order of arrival, each in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class EngineQueue:
    """Calls run one after the other, first come, first served; several run at once only if all of them are shared."""

    def __init__(self) -> None:
        self.waiting = self.running = 0
        self._order = asyncio.Lock()  # fair: wakes its waiters in the order in which they came
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> int:
        return self.waiting + self.running

    async def run(self, work: Callable[[], T], shared: bool = False) -> T:
        """Call `work` in a thread when all calls before it are done, and return its result.

        Do not cancel it: the thread would go on while the next call runs.
        """
        self.waiting += 1
        async with self._order:
            if not shared:
                await self._idle.wait()
            self.waiting -= 1
            self.running += 1
            self._idle.clear()
            if not shared:
                return await self._work(work)
        return await self._work(work)

    async def _work(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work)
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()


async def in_thread(work: Callable[[], T]) -> T:
    """Like asyncio.to_thread, but in a daemon thread: an engine that hangs does not keep its process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable, value: object) -> None:
        if not outcome.done():  # cancelled: nobody asks any more
            setter(value)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(settle, outcome.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, outcome.set_result, result)

    threading.Thread(target=run, daemon=True).start()
    return await outcome
