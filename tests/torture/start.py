"""One start of a run: forked from a nursery, or, where it has several processes, by its command."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.torture.moments import Moments
from tests.torture.nursery import Nursery
from tests.torture.scenarios import ROOT, Scenario

POLL_S = 0.0005
GONE_S = 20.0


class Start:
    """A run under way.

    Args:
        folder: gets the output and what else is known of this start; it is the working folder, too.
    """

    def __init__(self, scenario: Scenario, args: list[str], folder: Path, nursery: Nursery) -> None:
        number = next(n for n in itertools.count() if not (folder / f"start{n}.txt").exists())
        self.output, self._ended = folder / f"start{number}.txt", folder / f"start{number}.ended"
        place = folder / f"start{number}.moments"
        self.moments = Moments(place, new=True)
        self._command: subprocess.Popen | None = None
        if scenario.processes == 1:
            self.pid = nursery.start(args, folder, self.output, place, self._ended)
        else:
            command = [sys.executable, "-m", "tests.torture.watched", str(place), *args]
            env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            with self.output.open("w") as file:
                self._command = subprocess.Popen(
                    command, cwd=folder, env=env, stdout=file, stderr=file, start_new_session=True
                )
            self.pid = self._command.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        if self._command is not None:
            return self._command.poll()
        return int(self._ended.read_text()) if self._ended.exists() else None

    def wait_for(self, phase: str, times: int, limit: float) -> bool:
        """Until it has entered a phase so often; False if it ends before."""
        until = time.monotonic() + limit
        while self.moments.entered(phase) < times:
            if self.code is not None:
                return False
            if time.monotonic() > until:
                raise TimeoutError(f"not {times} times in {phase!r} within {limit:.0f} s, see {self.output}")
            time.sleep(POLL_S)
        return True

    def wait(self, seconds: float) -> bool:
        """So long; False if it ends before."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.code is not None:
                return False
            time.sleep(min(left, 0.01))
        return self.code is None

    def end(self, limit: float) -> int:
        """Its exit code, once it has ended by itself."""
        if self.wait(limit):
            self.kill()
            raise TimeoutError(f"no end within {limit:.0f} s, see {self.output}")
        return self.code

    def kill(self) -> None:
        """All processes of it, at once; returns when they are gone."""
        os.killpg(self.pid, signal.SIGKILL)
        until = time.monotonic() + GONE_S
        while self.code is None or alive(self.pid):
            if time.monotonic() > until:
                raise TimeoutError(f"process group {self.pid} is still there {GONE_S:.0f} s after SIGKILL")
            time.sleep(0.01)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
