"""An event loop in a thread of its own, and the lock of those who use what runs on it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch

from dirl.types import DecodingParams


class LoopThread:
    """An event loop in a thread that works on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, name="lmdeploy", daemon=True)
        self.thread.start()
        if device.index is not None:
            try:
                self.call(torch.cuda.set_device, device)  # not in `_serve`: a thread that ended of it answers no call
            except BaseException:
                self.close(lambda: None)
                raise

    def _serve(self) -> None:
        self.loop.run_forever()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function on the loop's thread; returns or raises what it does."""

        async def run() -> Any:
            try:
                return function(*args)
            except SystemExit as exit:  # LMDeploy's checks end so, which would kill the thread without a word
                raise RuntimeError("LMDeploy gave up; what it logged above says why") from exit

        return self.run(run())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, Any]) -> Future:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self, last: Callable[[], None]) -> None:
        self.call(last)
        self.run(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SharedLock:
    """A lock that generations with equal decoding settings share; everything else holds it exclusively."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.sharing = 0
        self.waiting = 0
        """Threads that want it exclusively: no further generation begins before they had it."""
        self.decoding: DecodingParams | None = None

    @contextmanager
    def shared(self, decoding: DecodingParams) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting and self._suits(decoding))
            self.sharing, self.decoding = self.sharing + 1, decoding
        try:
            yield
        finally:
            self._leave(1)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: self.sharing == 0)
            self.waiting -= 1
            self.sharing = -1
        try:
            yield
        finally:
            self._leave(-1)

    def _suits(self, decoding: DecodingParams) -> bool:
        return self.sharing == 0 or (self.sharing > 0 and self.decoding == decoding)

    def _leave(self, weight: int) -> None:
        with self.changed:
            self.sharing -= weight
            self.changed.notify_all()
