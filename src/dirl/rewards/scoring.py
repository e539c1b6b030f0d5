"""Scoring of samples while others are still being made: workers have begun long before the last sample is there."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from dirl.rewards.base import RewardSample
from dirl.rewards.feed import Feed
from dirl.rewards.pool import Outcome, WorkerPool

Report = TypeVar("Report")


class Scoring(Generic[Report]):
    """One round of samples: `add` each, then `finish`. A context manager, at whose end no thread is left.

    A thread hands samples to the workers as they come. Rewards that run in this process, which would hold up what makes
    the samples, run in `finish`; so errors come from there.

    Args:
        pool: of nobody else's until the end; None: no reward needs a worker.
        report: of all samples, and of what the workers found of them.
    """

    def __init__(
        self, pool: WorkerPool | None, report: Callable[[Sequence[RewardSample], Sequence[Outcome]], Report]
    ) -> None:
        self._pool, self._report = pool, report
        self._feed = Feed()
        self._samples: list[RewardSample] = []
        self._outcomes: list[Outcome] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Scoring[Report]":
        if self._pool is not None:
            self._thread = threading.Thread(target=self._work, args=(self._pool,), name="rewards", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.cancel()
        self._join()

    def add(self, sample: RewardSample) -> None:
        self._samples.append(sample)
        self._feed.put(sample)

    def finish(self) -> Report:
        """Rewards of all samples, whose keys must be distinct; waits for what is still missing."""
        self._feed.end()
        self._join()
        if self._error is not None:
            raise self._error
        return self._report(self._samples, self._outcomes)

    def _work(self, pool: WorkerPool) -> None:
        try:
            self._outcomes += pool.run(self._feed)
        except BaseException as error:  # for the thread that waits for it
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
