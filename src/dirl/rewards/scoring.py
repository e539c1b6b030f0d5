"""Scoring of samples while others are still being made: workers have begun long before the last sample is there."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from dirl.rewards.base import RewardSample
from dirl.rewards.feed import Feed
from dirl.rewards.pool import PATIENCE_S, Outcome, WorkerPool

Report = TypeVar("Report")


class Scoring(Generic[Report]):
    """One round of samples: `add` each, then `finish`. A context manager, at whose end no thread is left.

    A thread hands samples to the workers as they come. Rewards that run in this process would hold up what makes the
    samples, so they run in `finish`, while the last workers work; workers are asked about their failures too. Errors
    come from `finish`.

    Args:
        pool: of nobody else's until the end; None: no reward needs a worker.
        report: of all samples, and of what the workers found of them.
        ends_at_error: the workers stop at the first error of a reward.
    """

    def __init__(
        self,
        pool: WorkerPool | None,
        report: Callable[[Sequence[RewardSample], Iterable[Outcome]], Report],
        ends_at_error: bool,
    ) -> None:
        self._pool, self._report, self._ends_at_error = pool, report, ends_at_error
        self._feed = Feed()
        self._samples: list[RewardSample] = []
        self._outcomes: list[Outcome] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._working = False
        self._bell: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> "Scoring[Report]":
        if self._pool is not None:
            self._thread = threading.Thread(target=self._work, args=(self._pool,), name="rewards", daemon=True)
            self._working = True
            try:
                self._thread.start()
            except BaseException:  # a signal; `__exit__` is not called then
                self._feed.cancel()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.cancel()
        self._wait()

    def add(self, sample: RewardSample) -> None:
        self._samples.append(sample)
        self._feed.put(sample)

    def finish(self) -> Report:
        """Rewards of all samples, whose keys must be distinct; waits for what is still missing."""
        self._feed.end()
        return self._report(self._samples, self._found())

    def _found(self) -> Iterator[Outcome]:
        """Rewards of this process come first, and what they raise ends the wait."""
        self._wait()
        if self._error is not None:
            raise self._error
        yield from self._outcomes

    def _work(self, pool: WorkerPool) -> None:
        try:
            with closing(pool.run(self._feed)) as outcomes:
                for outcome in outcomes:
                    self._outcomes.append(outcome)
                    if outcome.error is not None and self._ends_at_error:
                        break
        except BaseException as error:  # for the thread that waits for it
            self._error = error
        finally:
            self._working = False
            self._bell.put(None)

    def _wait(self) -> None:
        """`Thread.join` alone, interrupted once, takes the thread for ended (Python < 3.13)."""
        while self._working:
            with suppress(Empty):
                self._bell.get(timeout=PATIENCE_S)
        if self._thread is not None:
            self._thread.join()
