"""A LightningModule whose checkpoints can be written in any hook, and resumed from any number of times."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from dirl.checkpoints.files import KEY, clear_run
from dirl.checkpoints.loops import use_loops
from dirl.checkpoints.position import Position, loop_state, position_of
from dirl.checkpoints.whole_files import WholeFiles


class Resumable(L.LightningModule):
    """Counts in a checkpoint are those of the place where it was written, see `dirl.checkpoints.position`.

    A training step says how far it is with `update`, so that a checkpoint of a run that fails within it is right too.
    """

    _unlogged: dict[str, Any] | None = None
    """The row of the step after which the checkpoint of a resumed run was written, and the step; until it goes on."""
    update: Literal["none", "begun", "made"] = "none"
    """The update of the weights (and of their schedule) in the batch under way."""
    _validated_at = 0
    _epochs_ended = 0

    def setup(self, stage: str) -> None:
        if stage == "fit":
            use_loops(self.trainer)
            if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                self._clear(Path(self.trainer.default_root_dir))
            if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                self.trainer.strategy.checkpoint_io = WholeFiles()

    @staticmethod
    def _clear(root: Path) -> None:
        """What a start was writing when it was killed is of the size of a checkpoint."""
        gone = clear_run(root)
        if gone:
            rank_zero_info(f"removed what killed starts of this run were writing: {', '.join(map(str, gone))}")

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.update, self._unlogged = "none", None

    def on_validation_epoch_end(self) -> None:
        self._validated_at = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def on_train_epoch_end(self) -> None:
        self._epochs_ended = self.trainer.fit_loop.epoch_progress.current.processed

    @property
    def position(self) -> Position:
        """The place from which a checkpoint written now goes on."""
        return position_of(self.trainer, self.update == "made", self._validated_at, self._epochs_ended)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current
        torn = self.update == "begun" and batches.started > batches.processed
        position = self.position
        checkpoint[KEY] = {"position": asdict(position), "torn": torn, "unlogged": self._row_to_come()}
        checkpoint["loops"]["fit_loop"] = loop_state(position)
        checkpoint["epoch"], checkpoint["global_step"] = position.epoch, position.optimizer_steps

    def _row_to_come(self) -> dict[str, Any] | None:
        """What loggers get of this step, or epoch, when every callback is through with it: a kill may come before.

        The resumed run logs it as its first row, whether or not the one before came so far.
        """
        trainer, connector = self.trainer, self.trainer._logger_connector
        loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
        batches, step = loop.batch_progress.current, loop._batches_that_stepped
        of_epoch = epochs.processed > epochs.completed
        if (of_epoch and self.position.step > 0) or (not of_epoch and batches.processed == batches.completed):
            # it is logged already, or will be by the resumed run; one that had nothing to do leaves things as they were
            return self._unlogged
        if not of_epoch and not connector.should_update_logs:
            return None
        values = {name: float(value) for name, value in connector.metrics["log"].items()}
        return {"step": step - of_epoch, "metrics": values | {"epoch": trainer.current_epoch}} if values else None

    def on_train_start(self) -> None:
        if self._unlogged is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics(self._unlogged["metrics"], step=self._unlogged["step"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._unlogged = checkpoint[KEY].get("unlogged")
        position = Position(**checkpoint[KEY]["position"])
        self._validated_at = position.batches if position.validated else 0
        for callback in self.trainer.checkpoint_callbacks:
            # Each start of a run has a folder of its own; ModelCheckpoint would forget what it knows of the best ones.
            state = checkpoint["callbacks"].get(callback.state_key)
            if state is not None and isinstance(callback, ModelCheckpoint):
                state["dirpath"] = callback.dirpath
