"""Progress: bars on a terminal; elsewhere (a log file) a line each so many seconds."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

LINE_S = 10.0
"""Seconds between two lines."""


class Lines(plain):
    """A bar that writes a line each so many seconds, and one at its end if it took so long."""

    disable: bool  # tqdm's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"mininterval": LINE_S, "maxinterval": LINE_S, "leave": True, "delay": LINE_S, "ncols": 100}
        super().__init__(*args, **kwargs)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def write(text: str) -> None:
            if text.strip():
                file.write(text.strip() + "\n")
                file.flush()

        return write

    def moveto(self, n: int) -> None:
        """Lines stand where they are."""

    def close(self) -> None:
        if self.disable:
            return
        if time.time() - self.start_t >= LINE_S:  # else so short that nobody has waited
            self.display()
        self.disable = True
        self._decr_instances(self)


def on_terminal() -> bool:
    return sys.stderr.isatty()


def bar(*args: Any, shown: bool = True, **kwargs: Any) -> plain:
    """A tqdm bar for this place: drawn, in lines, or silent."""
    kind = tqdm if on_terminal() else Lines
    return kind(*args, disable=not shown, **kwargs)


def quiet_libraries() -> None:
    """No bars of transformers and datasets."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    datasets.disable_progress_bars()


def bars_shown(trainer: L.Trainer) -> bool:
    """Whether this process of a run shows bars: the first does, unless `trainer.enable_progress_bar` is false."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def expect(shown: plain, more: int) -> None:
    """Let a bar's total grow, by rounds of work that come one after the other."""
    shown.total = (shown.total or 0) + more
    if not isinstance(shown, Lines):
        shown.refresh()


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
            self._write(trainer, pl_module, f"step {batch_idx + 1}/{self.total_train_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if time.monotonic() - self._written >= LINE_S or trainer.current_epoch + 1 == trainer.max_epochs:
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


def progress_callback() -> ProgressBar:
    """Lightning's bar for this place. The rollouts' bars are tqdm's too; two live displays would clash."""
    return TQDMProgressBar() if on_terminal() else ProgressLines()
