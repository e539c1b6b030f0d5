"""A worker process: it evaluates rewards on the samples it is sent, and says so after each one.

It imports neither torch nor the main module of its parent, so that it starts in a moment.
"""

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.evaluate import evaluate, summary


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    with Connection(descriptor) as connection:
        try:
            serve(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the parent has closed its end: nothing is left to do


def serve(connection: Connection) -> None:
    """First come the pickled rewards, then chunks: lists of samples."""
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
        samples: list[RewardSample] = connection.recv()
        connection.send(Received())
        for sample in samples:
            _evaluate_all(connection, rewards, sample)


def _evaluate_all(connection: Connection, rewards: Sequence[Reward], sample: RewardSample) -> None:
    """Send one Value for each reward, up to and including the first that fails."""
    for number, reward in enumerate(rewards):
        try:
            message = Value(number, evaluate(reward, sample), None)
        except BaseException as error:  # a reward's SystemExit is an error of its sample like any other
            message = Value(number, None, f"{summary(error)}\n{traceback.format_exc()}")
        connection.send(message)
        if message.error is not None:
            return


def _die_with(parent: int) -> None:
    """End this process and what it has started when its parent dies, even while a reward hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgid(0), signal.SIGKILL)
