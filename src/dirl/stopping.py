"""Signals that ask a run to end: SIGTERM and SIGUSR1 (clusters send them before they take a host back), and Ctrl-C.

While a run trains, such a signal is a request. It is looked at where the run can end well: after an optimizer step,
between two forwards of a rollout, after a validation batch. Before and after training it ends the process where it is.
A second Ctrl-C always does.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TOLD_BY = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
WORKER_WAITS_S = 20
"""How long a worker of a dataloader goes on after SIGTERM."""
AGAIN_S = 1.0
"""A signal within this time after the first is the same request, which reached this process on two ways."""
EXIT = {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 130}
"""Exit codes as shells have them: 128 plus the signal's number."""


class Stopped(SystemExit):
    """A run ends because a signal asked for it; its exit code says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(EXIT[signal.Signals(signum)])
        self.signum = signal.Signals(signum)

    def __str__(self) -> str:
        return f"stopped by {self.signum.name}"


class StopRequest:
    """Listens for signals in the main thread; any thread may look at the request.

    The C-level handler wakes a thread, which works also while the main thread is in a collective or a kernel, where
    Python's handlers wait.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The signal that asked this process to end; None: nobody has."""
        self.deferred = False
        """Whether the run looks at the request itself, and ends where that is safe."""
        self.tell_others: Callable[[int], None] = lambda signum: None
        """Passes a signal on to the other processes of this run on this host."""
        self._told_at = 0.0
        self._heard: tuple[int, ...] = TOLD_BY
        self._read: socket.socket | None = None
        self._write: socket.socket | None = None

    def check(self) -> None:
        """Raise Stopped if a signal has asked this run to end. For any thread, between any two pieces of work."""
        if self.signum is not None:
            raise Stopped(self.signum)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; what was set before is set again at the end. Outside of the main thread: nothing."""
        if threading.current_thread() is not threading.main_thread() or self._write is not None:
            yield
            return
        self.signum, self.deferred = None, False
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        before = {number: signal.getsignal(number) for number in TOLD_BY}
        wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=[self._read], name="signals", daemon=True)
        watcher.start()
        self.take_signals()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            self._write.close()  # ends the watcher
            watcher.join()
            self._read.close()
            self._read = self._write = None
            self.signum, self.deferred, self.tell_others = None, False, lambda signum: None

    def take_signals(self) -> None:
        """Put this request's handlers in place of others, while it listens."""
        if self._write is not None:
            for number in TOLD_BY:
                signal.signal(number, self._handle)

    @contextmanager
    def interrupts_by(self, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
        """Within, SIGINT is this handler's, for a command that goes on after Ctrl-C; SIGTERM ends it as ever."""
        before = signal.signal(signal.SIGINT, handler)
        self._heard = (signal.SIGTERM, signal.SIGUSR1)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._heard = TOLD_BY

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, as soon as Python gets there; the watcher has it already."""
        if not self.deferred:
            raise Stopped(signum)

    def _watch(self, read: socket.socket) -> None:
        while received := read.recv(64):
            for signum in received:
                if signum in self._heard:
                    self._take(signum)

    def _take(self, signum: int) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._told_at = signum, now
            self.tell_others(signum)
            if self.deferred:
                name = signal.Signals(signum).name
                _say(f"\n{name}: the run ends when it can leave a checkpoint (Ctrl-C again: at once)\n")
        elif signum == signal.SIGINT and now - self._told_at > AGAIN_S:
            _say("\nended at once\n")
            os._exit(EXIT[signal.SIGINT])

    def before_fork(self) -> None:
        """Hold signals back until the new process has its own handlers; the socket of this one is in its hands."""
        if self._write is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, TOLD_BY)

    def after_fork(self) -> None:
        """Let signals through again, in the process that has forked."""
        if self._write is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD_BY)

    def forget(self) -> None:
        """Forget the run in a fork: the signals that come to it are not the run's."""
        if self._write is not None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN if self.deferred else signal.default_int_handler)
            self._read = self._write = None
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD_BY)


def _say(text: str) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        os.write(2, text.encode())  # not sys.stderr: the main thread may be in the middle of a line of its own


request = StopRequest()
"""The one of this process: signals are its own."""
os.register_at_fork(before=request.before_fork, after_in_parent=request.after_fork, after_in_child=request.forget)


def leave_signals_to_parent(*args: object) -> None:
    """Have a process that a trainer has forked (a worker of its dataloader) end with the trainer, not before.

    SIGTERM may be for the whole group, and the trainer needs its batches until it can stop; or it is the trainer itself
    that ends this worker. So it is obeyed after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_WAITS_S))
