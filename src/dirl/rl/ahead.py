"""One collection made ahead of time, in a thread beside the trainer."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from dirl.rl.collector import Collection


class CollectionAhead:
    """At most one collection under way, for one epoch."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._work: Future[Collection] | None = None
        self._epoch: int | None = None
        self._cancelled = threading.Event()

    def start(self, epoch: int, collect: Callable[[Callable[[int], None]], Collection]) -> None:
        """Begin; `collect` calls the function it is given after every trajectory, which ends it when cancelled."""
        assert self._work is None, "a collection is under way"
        self._epoch, self._work = epoch, self._pool.submit(collect, self._go_on)

    def take(self, epoch: int) -> Collection | None:
        """The collection of this epoch, waited for; None if none was started. Raises what went wrong in it."""
        work, self._work = self._work, None
        if work is None:
            return None
        assert self._epoch == epoch, (self._epoch, epoch)
        return work.result()

    def wait(self) -> None:
        """Until the engine is free; the collection stays to be taken."""
        if self._work is not None:
            self._work.exception()

    def close(self) -> None:
        """Give up what is under way."""
        self._cancelled.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _go_on(self, count: int) -> None:
        if self._cancelled.is_set():
            raise RuntimeError("the run has ended")
