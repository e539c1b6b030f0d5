"""Prefetch: the next epoch's rollout is made in a thread beside the trainer, while it works on the one before."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from dirl.rl.collector import Collection
from dirl.stopping import request

PATIENCE_S = 0.25
"""How often one who waits for the collection looks whether the run was asked to end."""
END_S = 5.0
"""How long an engine may take to notice that its collection is given up."""


class RolloutPrefetch:
    """Holds at most one collection, for one epoch: under way, or finished and not yet taken."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._work: Future[Collection] | None = None
        self._epoch: int | None = None
        self._begun_at: dict[str, Any] = {}
        self._cancelled = threading.Event()

    def start(self, epoch: int, collect: Callable[[], Collection], begun_at: dict[str, Any]) -> None:
        """Begin the collection of this epoch; `collect` calls `check` between two pieces of work.

        Args:
            begun_at: the state of the stream of prompts, for `snapshot`.
        """
        assert self._work is None, "a collection is under way"
        self._epoch, self._begun_at = epoch, begun_at
        self._work = self._pool.submit(collect)

    def put(self, collection: Collection) -> None:
        """Hold a collection that was made before the run was interrupted, for the next epoch to take."""
        assert self._work is None, "a collection is under way"
        self._epoch, self._work = None, Future()
        self._work.set_result(collection)

    def snapshot(self) -> tuple[Collection | None, dict[str, Any] | None]:
        """The collection for a checkpoint. It is waited for, since the weights that make it will be gone.

        If it failed, the state that the stream of prompts had at its beginning comes in its place, to make it anew.
        """
        if self._work is None:
            return None, None
        if self._work.exception() is not None:
            return None, self._begun_at
        return self._work.result(), None

    def take(self, epoch: int) -> Collection | None:
        """Wait for this epoch's collection and return it; None if none was started. Raises what went wrong in it."""
        if self._work is None:
            return None
        assert self._epoch in (None, epoch), (self._epoch, epoch)
        self.wait()
        work, self._work = self._work, None
        return work.result()

    def wait(self) -> None:
        """Wait until the engine is free; the collection stays to be taken. Raises Stopped if the run is to end."""
        while self._work is not None and not wait([self._work], PATIENCE_S).done:
            request.check()

    def give_up(self) -> None:
        """End a collection under way at the next `check`: it will have failed. A finished one stays to be taken."""
        self._cancelled.set()

    def close(self) -> None:
        """Give up what is under way, and wait a little for the engine to notice."""
        self.give_up()
        if self._work is not None:
            wait([self._work], END_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Raise if the collection under way is given up."""
        if self._cancelled.is_set():
            raise RuntimeError("the run has ended")
