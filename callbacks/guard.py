"""The guard of a run: whatever ends it, a checkpoint is left where that is safe."""

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from dirl.checkpoints.files import PLACES
from dirl.data.rl import RLDataModule
from dirl.errors import is_together, saved, saved_at, together
from dirl.modules.base import BlockDiffusionModule
from dirl.stopping import Stopped, request

log = logging.getLogger(__name__)


class Guard(L.Callback):
    """Ends a run that a signal asks to end after the step, forward or validation batch under way.

    `dirl fit` adds it. SIGTERM, SIGUSR1 and Ctrl-C leave `stopped.ckpt` in `trainer.default_root_dir`, other errors
    `error.ckpt`: always on one process, on several where all of them end at the same place (signals, lost engines,
    what fails in a rollout). Nothing is written where nothing was trained since the start.
    """

    def __init__(self) -> None:
        self._begun_at: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer._signal_connector.__class__ = OwnSignals

    def on_train_start(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        request.check()  # what came while the model was loaded has ended the run already, or comes from another thread
        request.deferred = True
        self._begun_at = _batches(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        self._look(pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, *args: object) -> None:
        self._look(pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, *args: object) -> None:
        if request.deferred:
            self._look(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, exception: BaseException) -> None:
        if isinstance(trainer.datamodule, RLDataModule):
            trainer.datamodule.prefetch.give_up()
        if self._begun_at is None or _batches(trainer) == self._begun_at or trainer.fast_dev_run:
            return
        if saved_at(exception) is not None:
            return
        whole = pl_module.update != "begun"  # else weights and optimizer are those of no step
        if not whole or not (is_together(exception) or trainer.world_size == 1):
            self._name_last(trainer, exception)
            return
        name = "stopped.ckpt" if isinstance(exception, Stopped) else "error.ckpt"
        path = Path(trainer.default_root_dir) / name
        try:
            pl_module.after_rollout()
            trainer.save_checkpoint(path, weights_only=False)
        except Exception as error:  # the first one is what the user must see
            log.warning("no checkpoint could be written to %s: %s", path, error)
            self._name_last(trainer, exception)
        else:
            saved(exception, path)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        request.deferred, self._begun_at = False, None

    @staticmethod
    def _name_last(trainer: L.Trainer, exception: BaseException) -> None:
        root = Path(trainer.default_root_dir)
        if any(True for place in PLACES for _ in root.glob(place)):
            saved(exception, Path("last"))

    @staticmethod
    def _look(pl_module: BlockDiffusionModule) -> None:
        """End all processes if any was asked to."""
        signum = pl_module.largest_over_ranks(request.signum or 0)
        if signum:
            raise together(Stopped(signum))


class OwnSignals(_SignalConnector):
    """None of Lightning's handlers acts, for SIGTERM and for SLURM's requeueing: they call collectives wherever their
    process happens to be.
    """

    def register_signal_handlers(self) -> None:
        super().register_signal_handlers()
        request.take_signals()


def _batches(trainer: L.Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed
