"""Calls on an engine: in order of arrival, several at once only where they share."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from dirl.rollout.remote.engine_queue import EngineQueue


class Log:
    """What began and ended, in order; and how many ran at once."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lock = threading.Lock()

    def work(self, name: str, seconds: float = 0.03) -> Callable[[], str]:
        def run() -> str:
            with self.lock:
                self.events.append(f"+{name}")
            time.sleep(seconds)
            with self.lock:
                self.events.append(f"-{name}")
            return name

        return run


def run_all(*calls: tuple[str, bool, float]) -> list[str]:
    """Calls (name, shared, seconds) that come 5 ms after one another -> events."""
    log = Log()

    async def everything() -> None:
        queue = EngineQueue()
        tasks = []
        for name, shared, seconds in calls:
            tasks.append(asyncio.create_task(queue.run(log.work(name, seconds), shared)))
            await asyncio.sleep(0.005)
        assert queue.busy == len(calls)
        assert await asyncio.gather(*tasks) == [name for name, _, _ in calls]
        assert queue.busy == 0

    asyncio.run(everything())
    return log.events


def test_calls_that_do_not_share_follow_one_another_in_order_of_arrival() -> None:
    assert run_all(*((name, False, 0.05) for name in "abcd")) == [f"{s}{n}" for n in "abcd" for s in "+-"]


def test_calls_that_share_run_at_once() -> None:
    events = run_all(*((name, True, 0.1) for name in "abc"))
    assert set(events[:3]) == {"+a", "+b", "+c"}


def test_one_that_does_not_share_waits_for_those_before_it_and_holds_up_those_behind_it() -> None:
    events = run_all(("a", True, 0.1), ("b", True, 0.15), ("push", False, 0.05), ("c", True, 0.02), ("d", True, 0.02))
    middle = events.index("+push")
    assert set(events[:middle]) == {"+a", "+b", "-a", "-b"}
    assert events[middle + 1] == "-push"
    assert set(events[middle + 2 : middle + 4]) <= {"+c", "+d", "-c"}


def test_work_that_raises_gives_its_turn_back() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    async def both() -> str:
        queue = EngineQueue()
        for shared in (True, False):
            with pytest.raises(RuntimeError, match="broken"):
                await queue.run(fail, shared)
        assert queue.busy == 0
        return await queue.run(lambda: "next")

    assert asyncio.run(both()) == "next"
