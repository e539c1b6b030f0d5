"""The further processes of a tensor-parallel engine, as its first rank sees them: started, told, heard, ended."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from dirl.rollout.engine import EnginesLostError
from dirl.rollout.lmdeploy.rank_group import TIMEOUT, Seat

END_S = 30.0
"""A process that was told to end has so long."""
WATCH_S = 0.5
GONE_S = 1.0
"""A connection that breaks may be heard of before the process has ended."""


def serve(seat: Seat, connection: Connection) -> None:
    """What the new process runs: LMDeploy is imported there, and not here."""
    from dirl.rollout.lmdeploy import follower

    follower.serve(seat, connection)


class Followers:
    """Ranks 1 to size - 1, each a process on the next device.

    Args:
        first: where this process sits.
        main: main function of each of the others.
        method: of starting them; a process that has used CUDA cannot be forked.
    """

    def __init__(
        self, first: Seat, main: Callable[[Seat, Connection], None] = serve, method: Literal["spawn", "fork"] = "spawn"
    ) -> None:
        start: Any = multiprocessing.get_context(method)
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(1, first.size):
            ours, theirs = start.Pipe()
            seat = replace(first, rank=rank, device=first.device + rank)
            process = start.Process(target=main, args=(seat, theirs), name=f"lmdeploy-{rank}", daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)
        try:
            self.answers()
        except BaseException:
            self.end()
            raise

    def tell(self, name: str, *arguments: Any) -> None:
        for rank, connection in enumerate(self.connections, 1):
            try:
                connection.send((name, arguments))
            except OSError as error:
                raise self._lost(rank) from error

    def answers(self) -> list[Any]:
        """What all returned for the last order; EnginesLostError if one has failed, ended, or takes too long."""
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        return [self._answer(rank, deadline) for rank in range(1, len(self.connections) + 1)]

    @contextmanager
    def told(self, name: str, *arguments: Any) -> Iterator[list[Any]]:
        """They do it while the block is run, which does the first rank's part; then their answers are in the list.

        What fails in the block because one of them is gone is that one's loss.
        """
        found: list[Any] = []
        self.tell(name, *arguments)
        try:
            yield found
        except RuntimeError as error:
            for rank, process in enumerate(self.processes, 1):
                process.join(GONE_S)
                if not process.is_alive():
                    raise self._lost(rank) from error
            raise
        found += self.answers()

    async def watch(self) -> None:
        """Raise EnginesLostError when one of them has ended."""
        while True:
            for rank, process in enumerate(self.processes, 1):
                if not process.is_alive():
                    raise self._lost(rank)
            await asyncio.sleep(WATCH_S)

    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def end(self) -> None:
        for connection, process in zip(self.connections, self.processes, strict=True):
            if process.is_alive():
                try:
                    connection.send(("end", ()))
                except OSError:  # it has just ended
                    continue
        for connection, process in zip(self.connections, self.processes, strict=True):
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()

    def _answer(self, rank: int, deadline: float) -> Any:
        connection, process = self.connections[rank - 1], self.processes[rank - 1]
        ready = wait([connection, process.sentinel], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise EnginesLostError(f"rank {rank} of LMDeploy's engine has not answered for {TIMEOUT}: restart it")
        if connection not in ready:
            raise self._lost(rank)
        try:
            kind, value = connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(rank) from error
        if kind == "failed":
            raise self._failed(rank, value)
        return value

    def _lost(self, rank: int) -> EnginesLostError:
        """The error for a follower that has ended, with what it said last."""
        connection, process = self.connections[rank - 1], self.processes[rank - 1]
        process.join(1)
        while connection.poll():
            try:
                kind, value = connection.recv()
            except (EOFError, OSError):
                break
            if kind == "failed":
                return self._failed(rank, value)
        ended = f"rank {rank} of LMDeploy's engine has ended (exit code {process.exitcode})"
        return EnginesLostError(f"{ended}: start the engine anew")

    @staticmethod
    def _failed(rank: int, trace: str) -> EnginesLostError:
        return EnginesLostError(f"rank {rank} of LMDeploy's engine has failed:\n{trace}")
