"""Processor seconds of a run by phase: unlike seconds of a wall clock, they are the same beside other work."""

import json
import time
from collections import defaultdict
from pathlib import Path

from lightning.pytorch.profilers import Profiler

PHASES = {
    "rollout": "Rollout.on_train_epoch_start",
    "evaluate": "Evaluate.on_train_epoch",
    "batch": "train_dataloader_next",
    "train": "run_training_batch",
}
"""Phase -> what is in Lightning's names of it; none lies within another."""


class ProcessorClock(Profiler):
    """A profiler for `trainer.profiler` that writes {phase: seconds} when the run ends.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.began: dict[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self, action_name: str) -> None:
        self.began[action_name] = time.process_time()

    def stop(self, action_name: str) -> None:
        spent = time.process_time() - self.began.pop(action_name)
        for phase, part in PHASES.items():
            if part in action_name:
                self.seconds[phase] += spent

    def describe(self) -> None:
        self.path.write_text(json.dumps(self.seconds, indent=1), encoding="utf-8")
