"""Time and memory of work on a device, and the matrix rate that utilisation is measured against."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

LEFT_OUT = "Left out for lack of time:"


@dataclass(frozen=True)
class Timing:
    """Of repeated equal calls."""

    seconds: float
    """Median of the calls after the first, by the device's own clock."""
    first_seconds: float
    """The first call by the host's clock, compilation included."""
    peak_bytes: int
    """Largest memory of tensors on the device during the timed calls, all that was there before them included; 0 on
    CPU."""


def timed(call: Callable[[], object], device: str, repeats: int = 3) -> Timing:
    """Time a call, which leaves its result on the device."""
    started = time.perf_counter()
    call()
    synchronize(device)
    first = time.perf_counter() - started
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = [_once(call, device) for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else 0
    return Timing(statistics.median(seconds), first, peak)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def matrix_rate(device: str, size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of a square bf16 matrix product on random numbers, which draw the power that zeros would save."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):  # the clock of an idle device rises first
        torch.mm(left, right)
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=out)

    return repeats * 2 * size**3 / timed(products, device).seconds


def copy_rate(device: str, size: int = 2**31) -> float:
    """Bytes per second that a copy on the device moves, counted once, not as read and written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return size / timed(lambda: target.copy_(source), device).seconds


def device_name(device: str) -> str:
    return "CPU" if device == "cpu" else torch.cuda.get_device_name()


def pick_device(dry_run: bool) -> str:
    """A dry run stays on the CPU, wherever it is."""
    if dry_run:
        return "cpu"
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: this benchmark measures one; --dry-run checks it on a CPU at toy size")
    return "cuda"


class Deadline:
    """Ends a part before the machine that it runs on does; what was left out is said."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def passed(self, what: str) -> bool:
        """Whether no time is left; `what` then counts as left out."""
        late = time.monotonic() > self.end
        if late:
            self.left_out.append(what)
        return late

    def note(self) -> str:
        return f"{LEFT_OUT} {', '.join(self.left_out)}." if self.left_out else ""


def _once(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
