"""The guard of the weights: an optimizer step whose loss or gradient is not finite is not made, but counted and kept.

A step that is skipped changes nothing but its own count: weights, optimizer, schedule, `global_step` and with it the
policy version stay. It is skipped on all ranks or on none.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from dirl.batches import StepBatch
from dirl.finite import NotFiniteError

log = logging.getLogger(__name__)

FOLDER = "not_finite"
"""The folder in the run's log folder for the batches of skipped steps."""
FILES = 32
"""The most batches that one start of a run keeps, so that they do not fill the disk."""


@dataclass
class StepGuard:
    """Counts skipped steps, and ends a run in which too many come in a row.

    Args:
        limit: steps in a row that may be skipped.
    """

    limit: int
    in_row: int = 0
    in_all: int = 0
    files: int = 0

    def made(self) -> None:
        """Take notice that a step was finite."""
        self.in_row = 0

    def skip(
        self, trainer: L.Trainer, step: StepBatch, losses: Sequence[Float[Tensor, ""]], loss: float, norm: float
    ) -> None:
        """Count this step, keep its batch, and say so; on all ranks (the log folder is asked for, a collective).

        Args:
            losses: of this rank's micro-batches, before they are summed.
            loss, norm: of the step, over all ranks.

        Raises:
            NotFiniteError: more than `limit` steps in a row.
        """
        self.in_row, self.in_all = self.in_row + 1, self.in_all + 1
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER
        path = folder / f"batch{batches}-rank{trainer.global_rank}.pt"
        numbers = {"loss": loss, "grad_norm": norm, "losses": torch.stack([each.cpu() for each in losses])}
        place = {"epoch": trainer.current_epoch, "global_step": trainer.global_step, "batch": batches}
        kept = self._keep(path, step, numbers | place | {"rank": trainer.global_rank})
        what = f"after {trainer.global_step} optimizer steps: loss {loss:g}, gradient norm {norm:g}, not both finite"
        if self.in_row > self.limit:
            raise NotFiniteError(
                f"{what}, for the {self.in_row}th step in a row (max_skipped_steps={self.limit}): the weights are as "
                f"they were before these steps. {kept}. Look there at the data, lower the learning rate, or go on from "
                "an earlier checkpoint"
            )
        if trainer.is_global_zero:
            log.warning(
                "%s: the step is skipped (%d in all, %d in a row of at most %d). %s",
                what, self.in_all, self.in_row, self.limit, kept,
            )  # fmt: skip

    def state(self) -> dict[str, int]:
        """What a checkpoint holds of it."""
        return {"in_row": self.in_row, "in_all": self.in_all}

    def load(self, state: dict[str, int]) -> None:
        self.in_row, self.in_all = state["in_row"], state["in_all"]

    def _keep(self, path: Path, step: StepBatch, numbers: dict[str, Any]) -> str:
        """Write the batch; a sentence that says where it is, or why it is nowhere: a full disk must not end the run."""
        if self.files >= FILES:
            return f"Its batch is not kept: {path.parent} holds {FILES} of this run"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step.state(), **numbers}, path)
        except (OSError, RuntimeError) as error:  # torch's writer has its own words for a full disk
            return f"Its batch could not be kept in {path}: {error}"
        self.files += 1
        return f"Its batch is in {path} (and of other ranks beside it; dirl.modules.guard.load_batch reads it)"


def load_batch(path: str | Path) -> tuple[StepBatch, dict[str, Any]]:
    """A batch that a skipped step left, as the module got it, and what was found.

    Returns:
        the batch of one rank; `loss` and `grad_norm` of the step over all ranks, `losses` of the micro-batches of this
        rank (those behind its own only keep ranks equal), `epoch`, `global_step`, `batch` (of the run, from 1), `rank`.
    """
    found = torch.load(path, map_location="cpu", weights_only=True)
    return StepBatch.from_state(found.pop("step")), found
