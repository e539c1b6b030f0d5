"""Stage one: supervised fine-tuning by block diffusion (DiRL, eq. 3)."""

import math

from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanMetric

from dirl.batches import PackedBatch, StepBatch
from dirl.finite import NotFiniteError
from dirl.losses import weighted_cross_entropy
from dirl.modules.base import BlockDiffusionModule
from dirl.types import DecodingParams

_PLAIN = DecodingParams()


class SFTModule(BlockDiffusionModule):
    """Cross-entropy on the masked response tokens, weighted by 1/t, per response token of the optimizer step."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.nelbo = MeanMetric(nan_strategy=math.inf)  # what else it offers leaves a NaN out of the mean

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        if step.block_size is not None:
            self.log("train/block_size", float(step.block_size), prog_bar=True)
        self.optimize(step, lambda batch, divisor: {"loss": self.loss(batch, divisor)})

    def loss(self, batch: PackedBatch, divisor: Float[Tensor, ""] | float) -> Float[Tensor, ""]:
        row, plan = self.place(batch, _PLAIN)
        assert self.model is not None, "`configure_model` builds it"
        scores = self.model(row, _PLAIN, entropy=False, plan=plan)
        return weighted_cross_entropy(scores.logprobs, row.loss_weights[scores.positions], divisor)

    def validation_step(self, step: StepBatch, batch_idx: int) -> None:
        """Negative evidence lower bound per response token, nats, on noise that is fixed per example."""
        total = sum(self.loss(batch, 1.0) for batch in self.equal_micro_batches(step))
        if step.loss_divisor:
            self.nelbo.update(total / step.loss_divisor, step.loss_divisor)
        self.log("val/nelbo_per_token", self.nelbo, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        bound = float(self.nelbo.compute())  # over all ranks
        if not math.isfinite(bound):
            raise NotFiniteError(
                f"validation after {self.trainer.global_step} optimizer steps: the loss is not finite; look at the "
                "model that the run began with and at data.val, or go on from an earlier checkpoint"
            )
