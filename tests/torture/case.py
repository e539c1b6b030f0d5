"""One case: a run that is killed again and again, and goes on each time from its newest checkpoint."""

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.moments import Kill
from tests.torture.nursery import Nursery
from tests.torture.reference import LIMIT_S, Reference, checkpoints, compare
from tests.torture.start import Start

IN_PHASE = 0.5
"""How often a kill waits for a phase; else for a moment, which seldom comes in the short ones."""
DAMAGE = 0.2
"""How often the newest checkpoint is cut off after a kill, as a power failure may leave it."""
NONE_YET = ("there is no checkpoint", "checkpoints can be resumed")


@dataclass
class Result:
    """Of a case."""

    scenario: str
    seed: int
    folder: Path
    kills: list[Kill] = field(default_factory=list)
    resumes: int = 0
    anew: int = 0
    """Starts from the beginning, because a kill came before the first checkpoint (or damage took the only one)."""
    damaged: set[Path] = field(default_factory=set)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Case:
    """Kill moments are drawn with the seed; where the run is then is up to the machine."""

    def __init__(self, reference: Reference, seed: int, folder: Path, nurseries: list[Nursery]) -> None:
        self.reference, self.scenario = reference, reference.scenario
        self.random = random.Random(f"{self.scenario.name} {seed}")
        self.folder, self.root, self.nurseries = folder, folder / "run", nurseries
        folder.mkdir()
        self.args = reference.args(self.root)
        self.result = Result(self.scenario.name, seed, folder)
        self._unseen: Path | None = None

    def run(self) -> Result:
        began = time.monotonic()
        try:
            self._run()
            self.result.wrong += compare(self.reference, self.root, self.result.damaged)
        except (RuntimeError, TimeoutError) as error:
            self.result.wrong.append(str(error))
        self.result.seconds = time.monotonic() - began
        return self.result

    def _run(self) -> None:
        left, resume = self.scenario.kills, False
        while True:
            start = self._start(resume)
            began = start.wait_for("fit", 1, LIMIT_S)
            if resume:
                self._look(start, began)
            if began and left and self._kill(start, left):
                left, resume = left - 1, True
            elif code := start.end(LIMIT_S):
                said = start.output.read_text()
                if began or not resume or code != 1 or not any(text in said for text in NONE_YET):
                    raise RuntimeError(f"exit code {code}, see {start.output}")
                resume = False
            elif self.result.kills:
                return
            else:  # faster than its first kill
                shutil.rmtree(self.root)
                resume = False

    def _start(self, resume: bool) -> Start:
        """As its user types it; starts take turns between nurseries, so that hashes have other seeds."""
        self.nurseries = [*self.nurseries[1:], self.nurseries[0]]
        args = [*self.args, "--ckpt_path", "last"] if resume else self.args
        return Start(self.scenario, args, self.folder, self.nurseries[0])

    def _look(self, start: Start, began: bool) -> None:
        """Whether it went on if it could, and said what it passed over."""
        whole = checkpoints(self.root, self.result.damaged)
        if began:
            self.result.resumes += 1
        elif whole:
            raise RuntimeError(f"it did not go on from its checkpoints, see {start.output}")
        else:
            self.result.anew += 1
        if self._unseen and f"{self._unseen.name} is damaged" not in start.output.read_text():
            raise RuntimeError(f"{self._unseen} is damaged, and nothing was said, see {start.output}")
        self._unseen = None

    def _kill(self, start: Start, left: int) -> bool:
        """At a moment of what should be left of its life, or within a phase; False if it had ended before."""
        done = max(checkpoints(self.root, self.result.damaged), default=0)
        share = max(1 - done / self.scenario.last, 0.05) * min(1.0, 2 / (left + 1))
        if self.random.random() < IN_PHASE:
            phase = self.random.choice(self.reference.phases)
            times = self.random.randint(1, max(1, int(self.reference.moments.entered(phase) * share)))
            if not start.wait_for(phase, times, LIMIT_S):
                return False
            delay = self.random.uniform(0, self.reference.moments.seconds(phase))
        else:
            delay = self.random.uniform(0, self.reference.life * share)
        if not start.wait(delay):
            return False
        start.kill()
        self.result.kills.append(start.moments.kill)
        self._damage()
        return True

    def _damage(self) -> None:
        """Cut off the newest checkpoint, now and then."""
        whole = checkpoints(self.root, self.result.damaged)
        if not whole or self.random.random() > DAMAGE:
            return
        newest = max((path for paths in whole.values() for path in paths), key=written_at)
        file = max(newest.iterdir(), key=lambda f: f.stat().st_size) if newest.is_dir() else newest
        stat = file.stat()
        os.truncate(file, self.random.randrange(stat.st_size))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.result.damaged.add(newest)
        self._unseen = newest


def written_at(path: Path) -> int:
    return max(f.stat().st_mtime_ns for f in (path.iterdir() if path.is_dir() else [path]))
