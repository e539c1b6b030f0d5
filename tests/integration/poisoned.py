"""Modules whose loss is not finite in batches that a test names."""

from torch import Tensor

from dirl.batches import PackedBatch, StepBatch
from dirl.modules import RLModule, SFTModule


class PoisonedSFT(SFTModule):
    """SFT with a loss that is NaN in some batches of one process.

    Args:
        poisoned: batches of the run, from 1.
        rank: of the process.
    """

    def __init__(self, source: object, poisoned: list[int], rank: int = 0, **options: object) -> None:
        super().__init__(source, **options)
        self.poisoned, self.rank = poisoned, rank

    def loss(self, batch: PackedBatch, divisor: Tensor | float) -> Tensor:
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        loss = super().loss(batch, divisor)
        return loss * float("nan") if number in self.poisoned and self.global_rank == self.rank else loss


class PoisonedDiPO(RLModule):
    """DiPO with a gradient that is infinite in some batches, with a loss that is finite.

    Args:
        poisoned: batches of the run, from 1.
    """

    def __init__(self, source: object, poisoned: list[int], **options: object) -> None:
        super().__init__(source, **options)
        self.poisoned = poisoned

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        if self.trainer.fit_loop.epoch_loop.batch_progress.total.ready in self.poisoned:
            weight = self.model.backbone.lm_head.weight
            handle = weight.register_hook(lambda gradient: gradient * float("inf"))
        else:
            handle = None
        super().training_step(step, batch_idx)
        if handle is not None:
            handle.remove()
