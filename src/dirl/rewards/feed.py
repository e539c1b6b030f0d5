"""Samples on their way from the thread that makes them to the one that has them scored."""

from collections.abc import Iterable
from queue import Empty, SimpleQueue

from dirl.rewards.base import RewardSample


class CancelledError(Exception):
    """Nobody wants the scores any more."""


class Feed:
    """Samples in the order in which they come, until there are no more.

    No Condition: a signal handler that raises in its `__enter__` would leave it locked. A SimpleQueue cannot be.
    """

    def __init__(self, samples: Iterable[RewardSample] = ()) -> None:
        self._news: SimpleQueue[RewardSample | None] = SimpleQueue()
        self._ended = self._cancelled = False
        for sample in samples:
            self._news.put(sample)

    def put(self, sample: RewardSample) -> None:
        self._news.put(sample)

    def end(self) -> "Feed":
        """No more will come."""
        self._news.put(None)
        return self

    def cancel(self) -> None:
        """Have whoever takes samples end with CancelledError."""
        self._cancelled = True
        self._news.put(None)

    def take(self, patience_s: float) -> list[RewardSample] | None:
        """What has come since, waited for up to `patience_s` seconds where nothing has; None: no more will come."""
        taken: list[RewardSample] = []
        while not (self._ended or self._cancelled):
            try:
                news = self._news.get(timeout=0.0 if taken else patience_s)
            except Empty:
                break
            if news is None:
                self._ended = True
            else:
                taken.append(news)
        if self._cancelled:
            raise CancelledError
        return taken or (None if self._ended else [])
