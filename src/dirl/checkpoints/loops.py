"""Lightning's fit loop, where a resumed run would leave out or do twice what its checkpoint did not yet hold."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class FitLoop(_FitLoop):
    """An epoch that was begun is ended, and a finished run that is resumed ends once more (and so exports)."""

    ended = False
    """Resumed: whether the epoch that goes on had been ended before its last batch; it need not end again for that."""

    @property
    def done(self) -> bool:
        epochs = self.epoch_progress.current
        return (self.ended or epochs.started <= epochs.processed) and super().done

    def on_advance_start(self) -> None:
        super().on_advance_start()
        self.ended = False

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.ended = state_dict["ended"]

    @property
    def skip(self) -> bool:
        return super().skip and not (self._loaded_from_state_dict and 0 < self.max_batches < float("inf"))


class EpochLoop(_TrainingEpochLoop):
    """Goes on behind the last batch that is done: with its validation, if that is pending, or the end of the epoch."""

    def run(self, data_fetcher: _DataFetcher) -> None:
        super().run(data_fetcher)
        self.restarting = False  # also where nothing was left to do, else the next epoch would begin at the end of this

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        # The step at which loggers write: `on_advance_end` counts a batch, and is entered again for a validation.
        entered_again = self.restarting and self._should_check_val_fx(data_fetcher)
        self._batches_that_stepped = self.batch_progress.total.ready - entered_again

    @property
    def _is_validation_done(self) -> bool:
        if super()._is_validation_done:
            return True
        fetcher = self.trainer.fit_loop._data_fetcher
        assert fetcher is not None, "the epoch loop runs"
        return not self._should_check_val_fx(fetcher)


def use_loops(trainer: Trainer) -> None:
    """Give a trainer these loops in place of Lightning's; their state is the same, so the objects stay."""
    trainer.fit_loop.__class__ = FitLoop
    trainer.fit_loop.epoch_loop.__class__ = EpochLoop
