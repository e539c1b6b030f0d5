"""Worker processes with a hard time limit for each sample, and exact blame for what hangs or dies.

A process is replaced when it exceeds a limit or ends, the rest of its chunk goes to another one. The sample that it
was working on is blamed for exceeding a limit; one whose process was ended from outside, or by itself, gets a second
try. Limits count from the arrival of a chunk or of the result before, so neither
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
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import NamedTuple

from dirl.rewards.base import Incomparable, Reward, RewardSample
from dirl.rewards.feed import Feed
from dirl.rewards.worker import Message, Received, Value

START_LIMIT_S = 120.0
"""The time for a process to start, import the rewards and prepare them, and to accept a chunk."""
PATIENCE_S = 0.25
"""How often a wait for workers is asked whether it is still wanted."""
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


class Job(NamedTuple):
    """A sample, its place among the samples of a call, and the numbers of the rewards that it still needs."""

    position: int
    sample: RewardSample
    numbers: tuple[int, ...]
    retried: bool = False


class WorkerPool:
    """Processes started when first needed and kept until `close`; for use from one thread at a time.

    Args:
        rewards: evaluated in this order on every sample, up to the first that fails.
        workers: number of processes.
        timeout_s: seconds for all rewards of one sample together.
    """

    still_wanted: Callable[[], None] = staticmethod(lambda: None)
    """Called a few times a second while `run` works; it raises what ends it."""

    def __init__(self, rewards: Sequence[Reward], workers: int, timeout_s: float) -> None:
        self._payload, self._rewards = pickle.dumps(list(rewards)), list(rewards)
        self._workers, self._timeout_s = workers, timeout_s
        self._crew: list[_Worker] = []
        self._idle_deaths = 0
        weakref.finalize(self, _end_all, self._crew, os.getpid())

    def run(self, samples: Feed) -> Generator[Outcome, None, None]:
        """Outcomes in the order in which they come; a caller that stops early must close the iterator.

        A sample's position is its place among all that the feed gave.
        """
        numbers = tuple(range(len(self._rewards)))
        pending: deque[Job] = deque()
        count = 0
        try:
            while True:
                busy = bool(pending) or any(worker.chunk for worker in self._crew)
                come = samples.take(0.0 if busy else PATIENCE_S)  # also after the last: it raises if cancelled
                if come is None and not busy:
                    return
                for sample in come or ():
                    pending.append(Job(count, sample, numbers))
                    count += 1
                yield from self._go_on(pending)
        except BaseException:  # also when the caller stops early: what is under way must not answer the next call
            self.close()
            raise

    def close(self) -> None:
        """End all processes; the next `run` starts new ones."""
        _end_all(self._crew, os.getpid())

    def _go_on(self, pending: deque[Job]) -> Iterator[Outcome]:
        """Give out what is pending, in smaller chunks towards the end, and hear what has been found."""
        self._dismiss_ended()
        size = max(1, min(MAX_CHUNK, math.ceil(len(pending) / (4 * self._workers))))
        self._hire(math.ceil(len(pending) / size))
        for worker in self._crew:
            if worker.idle and pending:
                worker.give([pending.popleft() for _ in range(min(size, len(pending)))])
        if pending or any(worker.chunk for worker in self._crew):
            yield from self._collect(pending)
        else:
            self.still_wanted()

    def _dismiss_ended(self) -> None:
        """Let processes go that ended while they had nothing to do: no sample is to blame, and no reward."""
        for worker in [worker for worker in self._crew if worker.idle and worker.ended]:
            self._crew.remove(worker)
            worker.connection.close()

    def _hire(self, chunks: int) -> None:
        """Start processes, as many as there are chunks to give to, up to the number wanted."""
        free = sum(not worker.chunk for worker in self._crew)
        for _ in range(min(self._workers - len(self._crew), chunks - free)):
            self._crew.append(_Worker(self._payload, self._timeout_s))

    def _collect(self, pending: deque[Job]) -> Iterator[Outcome]:
        """Wait for a message, an end or a limit; what has arrived counts before a limit does."""
        self.still_wanted()
        nearest = min(worker.deadline for worker in self._crew)
        patience = min(PATIENCE_S, max(0.0, nearest - time.monotonic()))
        heard = wait([worker.connection for worker in self._crew], patience)
        for worker in list(self._crew):
            if worker.connection in heard:
                yield from self._listen(worker, pending)
            elif time.monotonic() >= worker.deadline:
                yield from self._lose(worker, pending, hung=True)

    def _listen(self, worker: "_Worker", pending: deque[Job]) -> Iterator[Outcome]:
        try:
            outcome = worker.receive()
        except (EOFError, OSError):
            yield from self._lose(worker, pending, hung=False)
            return
        if worker.working:
            self._idle_deaths = 0
        if outcome is not None:
            yield outcome

    def _lose(self, worker: "_Worker", pending: deque[Job], hung: bool) -> Iterator[Outcome]:
        """End a process that hangs or has ended, blame its current sample or try it again, put the others back."""
        suspect = worker.chunk[0] if worker.working else None
        self._crew.remove(worker)
        status = worker.kill()
        yield from worker.last_words()
        worker.connection.close()
        if worker.working and (not hung or worker.chunk[0] is suspect):  # else it got ready at the last moment
            job = worker.chunk.popleft()
            job = job._replace(numbers=job.numbers[worker.step :])
            if hung or status == -signal.SIGPROF or job.retried:
                yield from self._give_up(job, self._cause(job, status, hung), pending)
            else:
                pending.appendleft(job._replace(retried=True))
        elif suspect is None and (worker.starting or worker.chunk):
            self._count_idle_death(_describe(status))
        pending.extendleft(reversed(worker.chunk))

    def _cause(self, job: Job, status: int, hung: bool) -> str:
        if hung:
            return f"no result within {self._timeout_s:g} s"
        if status == -signal.SIGPROF:
            return f"no result within {self._rewards[job.numbers[0]].cpu_limit_s:g} s of processor time"
        return f"it ended its worker process ({_describe(status)}), twice"

    def _give_up(self, job: Job, cause: str, pending: deque[Job]) -> Iterator[Outcome]:
        """The first of the job's rewards came to no end: incomparable, as the others of its kind; or an error."""
        values = {number: self._rewards[number].if_incomparable(job.sample) for number in job.numbers}
        if values[job.numbers[0]] is None:
            yield Outcome(job.position, job.numbers[0], None, cause)
            return
        for number, value in values.items():
            if value is not None:
                yield Outcome(job.position, number, Incomparable(value), None)
        rest = tuple(number for number, value in values.items() if value is None)
        if rest:
            pending.appendleft(job._replace(numbers=rest))

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

    `chunk` holds the jobs it has not finished; it works on the first one, and is at number `step` of its rewards.
    `deadline`, on the monotonic clock, is when it counts as hung.
    """

    def __init__(self, payload: bytes, timeout_s: float) -> None:
        self.connection, other = Pipe()
        code = _BOOT.format(path=sys.path, descriptor=other.fileno(), parent=os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[other.fileno()],
            start_new_session=True,  # one kill reaches what a reward has started, too
        )
        other.close()
        self._timeout_s = timeout_s
        self.chunk: deque[Job] = deque()
        self.starting, self._received, self.step = True, False, 0
        self.deadline = time.monotonic() + START_LIMIT_S
        self._send(payload)

    @property
    def idle(self) -> bool:
        return not self.starting and not self.chunk

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def working(self) -> bool:
        """Whether it is known to be at work on the first sample of its chunk."""
        return self._received and bool(self.chunk)

    def give(self, chunk: list[Job]) -> None:
        self.chunk.extend(chunk)
        self._received = False
        self.deadline = time.monotonic() + START_LIMIT_S
        self._send(pickle.dumps([(job.sample, job.numbers) for job in chunk]))

    def receive(self) -> Outcome | None:
        """Take one message; EOFError or OSError if the process has ended."""
        message: Message = self.connection.recv()
        if isinstance(message, Value):
            return self._advance(message)
        if isinstance(message, Received):
            self._received, self.step = True, 0
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
        job = self.chunk[0]
        outcome = Outcome(job.position, *message)
        self.step += 1
        if message.error is not None or self.step == len(job.numbers):
            self.chunk.popleft()
            self.step = 0
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
