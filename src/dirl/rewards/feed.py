"""Samples on their way from the thread that makes them to the one that has them scored."""

import threading
from collections import deque
from collections.abc import Iterable

from dirl.rewards.base import RewardSample


class CancelledError(Exception):
    """Nobody wants the scores any more."""


class Feed:
    """Samples in the order in which they come, until there are no more.

    Args:
        samples: that have come already.
    """

    def __init__(self, samples: Iterable[RewardSample] = ()) -> None:
        self._news = threading.Condition()
        self._samples = deque(samples)
        self._ended = self._cancelled = False

    def put(self, sample: RewardSample) -> None:
        with self._news:
            self._samples.append(sample)
            self._news.notify()

    def end(self) -> "Feed":
        """No more will come."""
        with self._news:
            self._ended = True
            self._news.notify()
        return self

    def cancel(self) -> None:
        """Have whoever takes samples end with CancelledError."""
        with self._news:
            self._cancelled = True
            self._news.notify()

    def take(self, patience_s: float) -> list[RewardSample] | None:
        """What has come since, waited for up to `patience_s` seconds where nothing has; None: no more will come."""
        with self._news:
            self._news.wait_for(lambda: self._samples or self._ended or self._cancelled, patience_s)
            if self._cancelled:
                raise CancelledError
            if self._ended and not self._samples:
                return None
            taken = list(self._samples)
            self._samples.clear()
            return taken
