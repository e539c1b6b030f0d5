"""Worker processes with a hard time limit for each sample, and exact blame for what hangs or dies.

A process is replaced when it exceeds the limit or ends; the sample that it was working on is blamed, the rest
of its chunk goes to another one. Limits count from the arrival of a chunk or of the result before, so neither
start-up nor waiting is charged to a sample. POSIX only.
"""

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import NamedTuple

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.worker import Message, Received, Value

START_LIMIT_S = 120.0
"""For a process to start, import the rewards and prepare them, and to accept a chunk."""
MAX_CHUNK = 32
MAX_IDLE_DEATHS = 3
"""Processes in a row that may end with no sample to blame."""

# Not multiprocessing's spawn: that would run the main module again, and with it import torch.
_BOOT = "import sys; sys.path[:] = {path!r}; from dirl.rewards.worker import main; main({descriptor}, {parent})"


class Outcome(NamedTuple):
    """What a reward, by its number, gave to the sample at `position`: a value or the text of an error."""

    position: int
    reward: int
    value: float | None
    error: str | None


class WorkerPool:
    """Processes started when first needed and kept until `close`; for use from one thread at a time.

    Args:
        rewards: evaluated in this order on every sample, up to the first that fails.
        workers: number of processes.
        timeout_s: seconds for all rewards of one sample together.
    """

    def __init__(self, rewards: Sequence[Reward], workers: int, timeout_s: float) -> None:
        self._payload, self._rewards = pickle.dumps(list(rewards)), len(rewards)
        self._workers, self._timeout_s = workers, timeout_s
        self._crew: list[_Worker] = []
        self._idle_deaths = 0
        weakref.finalize(self, _end_all, self._crew, os.getpid())

    def run(self, samples: Sequence[RewardSample]) -> Iterator[Outcome]:
        """Outcomes in the order in which they come; a caller that stops early must close the iterator."""
        pending = deque(enumerate(samples))
        size = max(1, min(MAX_CHUNK, math.ceil(len(samples) / (4 * self._workers))))
        try:
            while pending or any(worker.chunk for worker in self._crew):
                self._hire(math.ceil(len(pending) / size))
                for worker in self._crew:
                    if worker.idle and pending:
                        worker.give([pending.popleft() for _ in range(min(size, len(pending)))])
                yield from self._collect(pending)
        except BaseException:  # also when the caller stops early: what is under way must not answer the next call
            self.close()
            raise

    def close(self) -> None:
        """End all processes; the next `run` starts new ones."""
        _end_all(self._crew, os.getpid())

    def _hire(self, chunks: int) -> None:
        """Start processes, as many as there are chunks to give to, up to the number wanted."""
        free = sum(not worker.chunk for worker in self._crew)
        for _ in range(min(self._workers - len(self._crew), chunks - free)):
            self._crew.append(_Worker(self._payload, self._rewards, self._timeout_s))

    def _collect(self, pending: deque[tuple[int, RewardSample]]) -> Iterator[Outcome]:
        """Wait for a message, an end or a limit; what has arrived counts before a limit does."""
        nearest = min(worker.deadline for worker in self._crew)
        patience = None if nearest == math.inf else max(0.0, nearest - time.monotonic())
        heard = wait([worker.connection for worker in self._crew], patience)
        for worker in list(self._crew):
            if worker.connection in heard:
                yield from self._listen(worker, pending)
            elif time.monotonic() >= worker.deadline:
                yield from self._lose(worker, pending, hung=True)

    def _listen(self, worker: "_Worker", pending: deque[tuple[int, RewardSample]]) -> Iterator[Outcome]:
        try:
            outcome = worker.receive()
        except (EOFError, OSError):
            yield from self._lose(worker, pending, hung=False)
            return
        if worker.working:
            self._idle_deaths = 0
        if outcome is not None:
            yield outcome

    def _lose(self, worker: "_Worker", pending: deque[tuple[int, RewardSample]], hung: bool) -> Iterator[Outcome]:
        """End a process that hangs or has ended, blame its current sample and put the others back."""
        suspect = worker.chunk[0] if worker.working else None
        self._crew.remove(worker)
        status = _describe(worker.kill())
        yield from worker.last_words()
        worker.connection.close()
        if worker.working and (not hung or worker.chunk[0] is suspect):  # else it got ready at the last moment
            position, _ = worker.chunk.popleft()
            cause = f"no result within {self._timeout_s:g} s" if hung else f"it ended its worker process ({status})"
            yield Outcome(position, worker.reward, None, cause)
        elif suspect is None and (worker.starting or worker.chunk):
            self._count_idle_death(status)
        pending.extendleft(reversed(worker.chunk))

    def _count_idle_death(self, status: str) -> None:
        """Count a process that ended with no sample to blame; a few in a row are an error."""
        self._idle_deaths += 1
        if self._idle_deaths >= MAX_IDLE_DEATHS:
            raise RuntimeError(
                f"{MAX_IDLE_DEATHS} reward workers in a row ended before they began any work, the last with {status}; "
                "their output above may say why"
            )


class _Worker:
    """The parent's side of one process.

    `chunk` holds the samples it has not finished, with their positions; it works on the first one, and is at
    the reward with the number `reward`. `deadline`, on the monotonic clock, is when it counts as hung.
    """

    def __init__(self, payload: bytes, rewards: int, timeout_s: float) -> None:
        self.connection, other = Pipe()
        code = _BOOT.format(path=sys.path, descriptor=other.fileno(), parent=os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[other.fileno()],
            start_new_session=True,  # one kill reaches what a reward has started, too
        )
        other.close()
        self._rewards, self._timeout_s = rewards, timeout_s
        self.chunk: deque[tuple[int, RewardSample]] = deque()
        self.starting, self._received, self.reward = True, False, 0
        self.deadline = time.monotonic() + START_LIMIT_S
        self._send(payload)

    @property
    def idle(self) -> bool:
        return not self.starting and not self.chunk

    @property
    def working(self) -> bool:
        """Whether it is known to be at work on the first sample of its chunk."""
        return self._received and bool(self.chunk)

    def give(self, chunk: list[tuple[int, RewardSample]]) -> None:
        self.chunk.extend(chunk)
        self._received = False
        self.deadline = time.monotonic() + START_LIMIT_S
        self._send(pickle.dumps([sample for _, sample in chunk]))

    def receive(self) -> Outcome | None:
        """Take one message; EOFError or OSError if the process has ended."""
        message: Message = self.connection.recv()
        if isinstance(message, Value):
            return self._advance(message)
        if isinstance(message, Received):
            self._received, self.reward = True, 0
            self.deadline = time.monotonic() + self._timeout_s
        elif message.error is not None:
            raise RuntimeError(f"a worker could not load the rewards:\n{message.error}")
        else:
            self.starting, self.deadline = False, math.inf
        return None

    def last_words(self) -> Iterator[Outcome]:
        """Results that the process, now dead, had sent before its end."""
        try:
            while self.connection.poll():
                outcome = self.receive()
                if outcome is not None:
                    yield outcome
        except (EOFError, OSError):
            return

    def kill(self) -> int:
        """End the process and all that it has started; returns its exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left to end
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _advance(self, message: Value) -> Outcome:
        """Go to the next reward or, after the last one or an error, to the next sample."""
        outcome = Outcome(self.chunk[0][0], *message)
        self.reward += 1
        if message.error is not None or self.reward == self._rewards:
            self.chunk.popleft()
            self.reward = 0
            self.deadline = time.monotonic() + self._timeout_s if self.chunk else math.inf
        return outcome

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended: the next wait finds out
            self.connection.send_bytes(data)


def _end_all(crew: list[_Worker], owner: int) -> None:
    """Kill every process of the crew, unless this is a fork of their owner."""
    while crew and os.getpid() == owner:
        worker = crew.pop()
        worker.kill()
        worker.connection.close()


def _describe(status: int) -> str:
    return f"exit code {status}" if status >= 0 else f"signal {-status}"
