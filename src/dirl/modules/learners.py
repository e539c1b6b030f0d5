"""What has an optimizer of its own in a run: the policy, and a value model beside it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dirl.modules.optimization import OptimizerConfig, build_optimizer, clip_gradients, use_settings

T = TypeVar("T")


class Learner(NamedTuple):
    """Parameters that are optimized together."""

    name: str
    """Its name in logs and checkpoints, with a separator behind it; the policy, which comes first, has none."""
    parameters: list[Parameter]
    config: OptimizerConfig

    def named(self, name: str, separator: str) -> str:
        return f"{self.name}{separator}{name}" if self.name else name

    def settings(self, total_steps: int | float | None) -> dict[str, Any]:
        """What its optimizer has, flat, as a checkpoint holds it; `total_steps` where the schedule depends on it."""
        found = dataclasses.asdict(self.config) | {"total_steps": None}
        if self.config.schedule == "cosine":
            found["total_steps"] = total_steps
        return {self.named(name, "."): value for name, value in found.items()}

    def configured(self, total_steps: int | float) -> dict[str, Any]:
        """Optimizer and schedule, as Lightning takes them."""
        optimizer, scheduler = build_optimizer(self.parameters, self.config, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def as_list(found: T | list[T] | None) -> list[T]:
    """What Lightning gives for one optimizer, or for several."""
    assert found is not None, "there is at least the policy's"
    return found if isinstance(found, list) else [found]


def clip_all(learners: Sequence[Learner]) -> list[Float[Tensor, ""]]:
    """The norm of each one's gradient, before it is clipped by itself."""
    return [clip_gradients(learner.parameters, learner.config.max_grad_norm) for learner in learners]


def step_all(optimizers: Sequence[LightningOptimizer], schedulers: Sequence[LRScheduler]) -> None:
    """One update by all optimizers, which Lightning counts as one: its `global_step` is the policy's version."""
    first, *others = optimizers
    first.step()
    for optimizer in others:
        optimizer.optimizer.step()
    zero_all(optimizers)  # now: gradients would lie in memory through the next rollout
    for scheduler in schedulers:
        scheduler.step()


def zero_all(optimizers: Sequence[LightningOptimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()


def use_all_settings(
    learners: Sequence[Learner], optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler]
) -> None:
    """Give optimizers of a resumed run the settings of its config in place of the checkpoint's."""
    for learner, optimizer, scheduler in zip(learners, optimizers, schedulers, strict=True):
        assert isinstance(optimizer, AdamW) and isinstance(scheduler, LRScheduler), "those of `build_optimizer`"
        use_settings(optimizer, scheduler, learner.config)
