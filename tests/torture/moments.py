"""Where a run is: phases that it is in, written where they outlive it.

The run notes in a small file mapped to memory what it enters and leaves; a process that is killed leaves the file as it
stood, and whoever kills it can wait for a phase.
"""

import mmap
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

PHASES = (
    *("fit", "loading", "rollout", "generation", "scoring", "step", "validation", "evaluation"),
    *("checkpoint", "writing", "removal", "export"),
)
"""Outer ones first."""
RECORD = struct.Struct("<qqd")
"""Times entered, times left, seconds between."""
STEP = struct.Struct("<q")
SIZE = RECORD.size * len(PHASES) + STEP.size


@dataclass(frozen=True)
class Kill:
    """Where a run was when it was killed."""

    step: int
    """Optimizer steps that were made when a phase was last entered."""
    within: str
    """Phases, outer ones first."""

    def __str__(self) -> str:
        return f"{self.step} {self.within}"


class Moments:
    """The file, for the process that writes it and for those that look."""

    def __init__(self, path: Path, new: bool = False) -> None:
        if new:
            path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)

    def enter(self, phase: str) -> None:
        entered, left, seconds = self._record(phase)
        RECORD.pack_into(self._map, self._at(phase), entered + 1, left, seconds)

    def leave(self, phase: str, took: float) -> None:
        entered, left, seconds = self._record(phase)
        RECORD.pack_into(self._map, self._at(phase), entered, left + 1, seconds + took)

    def set_step(self, step: int) -> None:
        STEP.pack_into(self._map, RECORD.size * len(PHASES), step)

    def entered(self, phase: str) -> int:
        return self._record(phase)[0]

    def seconds(self, phase: str) -> float:
        """Mean of the times in it that came to their end."""
        _, left, seconds = self._record(phase)
        return seconds / max(left, 1)

    @property
    def kill(self) -> Kill:
        """As the run was left; where phases overlap, all of them."""
        inner = [p for p in PHASES if self.entered(p) > self._record(p)[1]]
        step = STEP.unpack_from(self._map, RECORD.size * len(PHASES))[0]
        return Kill(step, "/".join(inner[1:] or inner) or "end")

    def _record(self, phase: str) -> tuple[int, int, float]:
        return RECORD.unpack_from(self._map, self._at(phase))

    @staticmethod
    def _at(phase: str) -> int:
        return RECORD.size * PHASES.index(phase)


def watch(path: Path) -> None:
    """Let this process note its moments from now on."""
    from dirl.callbacks import Evaluate, Export, Rollout
    from lightning.pytorch import Trainer
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
    from lightning.pytorch.strategies import Strategy

    from dirl.modules import RLModule, SFTModule
    from dirl.rl.collector import Collector

    moments = Moments(path)
    trainers: list[Trainer] = []

    def note(owner: type, name: str, phase: str) -> None:
        setattr(owner, name, _noted(getattr(owner, name), phase, moments, trainers))

    note(Trainer, "fit", "fit")
    note(Rollout, "regenerate", "rollout")
    note(Collector, "collect", "generation")
    note(RLModule, "score_steps", "scoring")
    note(Evaluate, "_run", "evaluation")
    note(Export, "write", "export")
    note(Trainer, "save_checkpoint", "checkpoint")
    note(_EvaluationLoop, "run", "validation")
    for module in (RLModule, SFTModule):
        note(module, "training_step", "step")
    for strategy in _with_subclasses(Strategy):
        for name, phase in (
            ("save_checkpoint", "writing"),
            ("remove_checkpoint", "removal"),
            ("load_checkpoint", "loading"),
        ):
            if name in vars(strategy):
                note(strategy, name, phase)


def _with_subclasses(kind: type) -> list[type]:
    return [kind, *(each for sub in kind.__subclasses__() for each in _with_subclasses(sub))]


def _noted(function: Callable, phase: str, moments: Moments, trainers: list[Any]) -> Callable:
    @wraps(function)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if phase == "fit":
            trainers.append(self)
        if trainers:
            moments.set_step(trainers[-1].global_step)
        moments.enter(phase)
        started = time.perf_counter()
        try:
            return function(self, *args, **kwargs)
        finally:
            moments.leave(phase, time.perf_counter() - started)

    return run
