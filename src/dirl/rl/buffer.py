"""The rollout buffer: the packed optimizer steps of one rollout.

A map-style dataset of fixed length: Lightning asks for the dataloader before an epoch's rollout is made, so
the length must not depend on what the rollout brings.
"""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from dirl.batches import StepBatch


class RolloutBuffer(Dataset):
    """`steps_per_rollout` optimizer steps of one epoch's rollout, gone through `passes` times."""

    def __init__(self, steps_per_rollout: int, passes: int) -> None:
        self.steps_per_rollout, self.passes = steps_per_rollout, passes
        self.epoch: int | None = None
        self.steps: list[StepBatch] = []

    def __len__(self) -> int:
        return self.steps_per_rollout * self.passes

    def __getitem__(self, key: tuple[int, int]) -> StepBatch:
        epoch, step = key
        if self.epoch != epoch:
            raise RuntimeError(
                f"the rollout buffer is empty in epoch {epoch}: add dirl.callbacks.Rollout to the trainer (in a "
                "config, the key rollout)"
            )
        return self.steps[step % self.steps_per_rollout]

    def fill(self, epoch: int, steps: Sequence[StepBatch]) -> None:
        assert len(steps) == self.steps_per_rollout, (len(steps), self.steps_per_rollout)
        self.epoch, self.steps = epoch, list(steps)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer steps as plain containers of tensors, old and reference log-probs included."""
        return {"epoch": self.epoch, "steps": [step.state() for step in self.steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.steps = [StepBatch.from_state(step) for step in state["steps"]]
