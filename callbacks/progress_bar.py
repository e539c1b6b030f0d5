"""The progress of training: Lightning's bar on a terminal, elsewhere a line each so many seconds."""

import sys
import time

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from dirl.progress_bar import LINE_S, on_terminal


class ProgressLines(ProgressBar):
    """Lightning's progress as a line each so many seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled, self._written = True, 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if time.monotonic() - self._written >= LINE_S:
            done = batch_idx + 1
            self._write(trainer, pl_module, f"step {done}/{batches_of_epoch(trainer, done)}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs or 0 <= trainer.max_steps <= trainer.global_step
        if last or time.monotonic() - self._written >= LINE_S:
            self._write(trainer, pl_module, "ended")

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, where: str) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        values = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if k != "v_num"}
        if not values:
            return
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"epoch {trainer.current_epoch}, {where}: {shown}", file=sys.stderr, flush=True)
        self._written = time.monotonic()


def batches_of_epoch(trainer: L.Trainer, done: int) -> int | float:
    """How many `max_steps` leaves of them, seen from its batch `done`; Lightning's own number shrinks on the way."""
    left = trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else float("inf")
    return min(trainer.num_training_batches, done + left)


def progress_callback() -> ProgressBar:
    """Lightning's bar for this place. The rollouts' bars are tqdm's too; two live displays would clash."""
    return TQDMProgressBar() if on_terminal() else ProgressLines()
