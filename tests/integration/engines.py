"""Engines that misbehave on purpose, or watch."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar

import lightning as L
from tests.integration.toy import Letters
from torch import Tensor

from dirl.data.rl import RLDataModule
from dirl.rewards import RewardSample
from dirl.rollout import TorchEngine
from dirl.rollout.engine import EnginesLostError
from dirl.types import DecodingParams, GenerationRequest, Trajectory


class LostEngine(TorchEngine):
    """Is lost in the middle of its `lost_at`-th rollout, counted from 0; with `rank`, in that process alone."""

    def __init__(self, lost_at: int, rank: int | None = None) -> None:
        super().__init__()
        self.left = lost_at if rank in (None, int(os.environ.get("LOCAL_RANK", "0"))) else 10**6

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        self.left -= 1
        if self.left < 0:
            yield from islice(super().generate(requests, decoding), 3)
            raise EnginesLostError("every server is gone")
        yield from super().generate(requests, decoding)


class FailsInPush(TorchEngine):
    """On the second process alone, when it has taken one weight of its second update."""

    updates = 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self.updates += 1
        if self.updates > 1 and os.environ.get("LOCAL_RANK") == "1":
            next(iter(weights))
            raise ValueError("the device is gone")
        super().update_weights(weights, policy_version)


class PatientEngine(TorchEngine):
    """From its second rollout on it waits for an optimizer step that is made while it works."""

    step_made: ClassVar[threading.Event] = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.rollouts = 0

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        self.rollouts += 1
        if self.rollouts > 1 and not self.step_made.wait(timeout=30):
            raise RuntimeError("the trainer waited for the rollout")
        self.step_made.clear()
        yield from super().generate(requests, decoding)


class TellOfSteps(L.Callback):
    """Lets a `PatientEngine` go on."""

    def on_train_batch_end(self, *args: object) -> None:
        PatientEngine.step_made.set()


class FailsOnSecondRank(Letters):
    """Raises on the second process alone, in its second rollout."""

    in_process: ClassVar[bool] = True
    asked = 0

    def __call__(self, sample: RewardSample) -> float:
        self.asked += 1
        if self.asked > 40 and os.environ.get("LOCAL_RANK") == "1":
            raise KeyError("oops")
        return super().__call__(sample)


class NoTask(L.LightningDataModule):
    """Data of someone who has no tasks."""


class OwnRLData(RLDataModule):
    """Someone's own form of it."""

    def __init__(self, own: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.own = own
