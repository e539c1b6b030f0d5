"""A measurement in a process of its own, whose peak of memory is nobody else's."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    seconds: float
    """Processor seconds: on one thread, those of an undisturbed machine."""
    wall_seconds: float
    peak_bytes: int
    """Largest resident memory during the calls, less what was resident before them."""


def measured(call: Callable[[], Any], seconds: float = 0.0) -> tuple[Any, Cost]:
    """The result and the fastest of as many calls as begin within `seconds`, one at least.

    For memory, use it in a process that has done nothing else yet.
    """
    before = _resident()
    best, wall, used = float("inf"), float("inf"), 0.0
    while used == 0.0 or used < seconds:
        started, clock = time.process_time(), time.perf_counter()
        result = call()
        taken = time.process_time() - started
        best, wall, used = min(best, taken), min(wall, time.perf_counter() - clock), used + taken
    return result, Cost(best, wall, max(0, _largest_resident() - before))


def in_fresh_process(function: Callable[..., dict[str, Any]], *args: object, threads: int = 1) -> dict[str, Any]:
    """The result of a function of a module, from a new process that has torch loaded and nothing else.

    Raises RuntimeError if the process dies, e.g. because memory ran out.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, threads, function, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(
            f"{function.__name__}{args}: the process ended with exit code {process.exitcode} (see above; -9: memory?)"
        ) from error
    finally:
        process.join()


def _work(sender: Any, threads: int, function: Callable[..., dict[str, Any]], args: tuple[object, ...]) -> None:
    torch.set_num_threads(threads)
    sender.send(function(*args))


def _largest_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident() -> int:
    """Bytes now; where the system does not tell, the largest so far."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else _largest_resident()


def cost_columns(cost: Cost, scale: float = 1.0) -> dict[str, float]:
    """A cost as fields of a result; `scale` multiplies the times of a part that stands for the whole."""
    columns = asdict(cost)
    return {k: v * scale if "seconds" in k else v for k, v in columns.items()}
