"""A worker process: it evaluates rewards on the samples it is sent, and says so after each one.

It imports neither torch nor the main module of its parent, so that it starts in a moment.
"""

import contextlib
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.call import call_reward, summary


class Ready(NamedTuple):
    """The rewards are loaded, or `error` says why not."""

    error: str | None


class Received(NamedTuple):
    """A chunk has arrived; its first sample is being worked on."""


class Value(NamedTuple):
    """What reward number `reward` gave to the sample being worked on, or the error that ended this sample.

    The first line of an error says what it is, the rest is the traceback.
    """

    reward: int
    value: float | None
    error: str | None


Message = Ready | Received | Value


def main(descriptor: int, parent: int) -> None:
    """Serve the connection with this file descriptor until it closes or the process `parent` is gone."""
    for ours in (signal.SIGINT, signal.SIGUSR1):  # Ctrl-C, and a cluster's warning, are the parent's affair
        signal.signal(ours, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends this process, whatever the parent does with it
    os.set_inheritable(descriptor, False)
    with contextlib.suppress(OSError):  # where Linux runs out of memory, this process ends and not the trainer
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    with Connection(descriptor) as connection:
        try:
            serve(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the parent has closed its end: nothing is left to do


def serve(connection: Connection) -> None:
    """First come the pickled rewards, then chunks: lists of samples with the numbers of their rewards."""
    payload = connection.recv_bytes()
    try:
        rewards: list[Reward] = pickle.loads(payload)
        for reward in rewards:
            reward.prepare()
    except Exception:
        connection.send(Ready(traceback.format_exc()))
        return
    connection.send(Ready(None))
    while True:
        jobs: list[tuple[RewardSample, Sequence[int]]] = connection.recv()
        connection.send(Received())
        for sample, numbers in jobs:
            _evaluate_all(connection, {number: rewards[number] for number in numbers}, sample)


def _evaluate_all(connection: Connection, rewards: Mapping[int, Reward], sample: RewardSample) -> None:
    """Send one Value for each reward, up to and including the first that fails."""
    for number, reward in rewards.items():
        # The kernel ends this process at the limit, inside of C too; it counts no time in which others run.
        signal.setitimer(signal.ITIMER_PROF, reward.cpu_limit_s or 0.0)
        try:
            message = Value(number, call_reward(reward, sample), None)
        except BaseException as error:  # a reward's SystemExit is an error of its sample like any other
            message = Value(number, None, f"{summary(error)}\n{traceback.format_exc()}")
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        connection.send(message)
        if message.error is not None:
            return


def _die_with(parent: int) -> None:
    """End this process and what it has started when its parent dies, even while a reward hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgid(0), signal.SIGKILL)
