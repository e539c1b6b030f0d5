"""One collection made ahead of time, in a thread beside the trainer."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dirl.rl.collector import Collection


class CollectionAhead:
    """At most one collection under way, for one epoch."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._work: Future[Collection] | None = None
        self._epoch: int | None = None
        self._begun_at: dict[str, Any] = {}
        self._cancelled = threading.Event()

    def start(
        self,
        epoch: int,
        collect: Callable[[Callable[[int], None]], Collection],
        begun_at: dict[str, Any],
    ) -> None:
        """Begin; `collect` calls the function it is given after every trajectory, which ends it when cancelled.

        Args:
            begun_at: the state of the stream of prompts, for `snapshot`.
        """
        assert self._work is None, "a collection is under way"
        self._epoch, self._begun_at = epoch, begun_at
        self._work = self._pool.submit(collect, self._go_on)

    def put(self, collection: Collection) -> None:
        """One for the next epoch to be taken, which was made before the run was interrupted."""
        assert self._work is None, "a collection is under way"
        self._epoch, self._work = None, Future()
        self._work.set_result(collection)

    def snapshot(self) -> tuple[Collection | None, dict[str, Any] | None]:
        """For a checkpoint: the collection under way, waited for, since the weights that make it will be gone.

        With one that failed, the state of the stream at its beginning: it is then made anew.
        """
        if self._work is None:
            return None, None
        if self._work.exception() is not None:
            return None, self._begun_at
        return self._work.result(), None

    def take(self, epoch: int) -> Collection | None:
        """The collection of this epoch, waited for; None if none was started. Raises what went wrong in it."""
        work, self._work = self._work, None
        if work is None:
            return None
        assert self._epoch in (None, epoch), (self._epoch, epoch)
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
