"""Where a run stands, and Lightning's loop counters for it: a pure function of that place.

Lightning saves the counters of its loops as they happen to stand, which depends on the hook that saves (a batch that
is done counts as completed only after `on_train_batch_end`) and on whether the run was itself resumed. Resumed from,
such counters skip the end of an epoch, or an epoch, or train one twice. Here a checkpoint gets the counters that belong
to its place, whatever wrote it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.progress import (
    _BaseProgress,
    _BatchProgress,
    _OptimizationProgress,
    _ProcessedTracker,
    _Progress,
    _ReadyCompletedTracker,
    _SchedulerProgress,
)


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps.

    With `step` 0 the next thing is `on_train_epoch_start`; with another number the epoch is under way, even if there is
    nothing left of it but its end (`on_train_epoch_end`).
    """

    epoch: int
    """Epochs that are done."""
    step: int
    """Batches of this epoch that are done."""
    batches: int
    """Batches of the whole run that are done."""
    optimizer_steps: int
    """Steps of the whole run: fewer than batches where steps were skipped."""
    validated: bool
    """Whether the validation after the last batch, if one is due there, is done."""
    ended: bool = False
    """Whether `max_steps` or a stop has ended this epoch before its last batch."""


def position_of(trainer: Trainer, update_made: bool = False, validated_at: int = 0, epochs_ended: int = 0) -> Position:
    """Where the run stands, in whatever hook or batch it is; the trainer has the loops of `dirl.checkpoints.loops`.

    Args:
        update_made: whether the training step under way, if there is one, has already updated the weights.
        validated_at: batches of the whole run that were done at the last validation that went to its end.
        epochs_ended: epochs that have been through all callbacks' `on_train_epoch_end`, except those that save or stop.
    """
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    in_step = batches.current.started > batches.current.processed
    done, step = batches.total.processed, batches.current.processed
    if in_step and update_made:
        done, step = done + 1, step + 1
    optimizer_steps = loop.epoch_loop.manual_optimization.optim_step_progress.total.completed

    def place(epoch: int, step: int, **state: bool) -> Position:
        return Position(epoch, step, done, optimizer_steps, **{"validated": False, **state})

    if epochs.ready > epochs.started:  # before the first batch: the counts of the epoch before still stand
        return place(epochs.processed, 0)
    if epochs.started > epochs.processed:
        ended = loop.ended  # and nothing has been done since
        return place(epochs.processed, step, validated=ended or 0 < done == validated_at, ended=ended)
    whole = step == 0 or step >= trainer.num_training_batches
    ended = epochs.completed == epochs.processed or epochs_ended == epochs.processed
    if whole and ended:
        return place(epochs.processed, 0)
    return place(epochs.processed - 1, step, validated=True, ended=ended)


def loop_state(position: Position) -> dict[str, Any]:
    """The state of Lightning's fit loop with which a run goes on from `position`."""
    begun = position.step > 0
    done, ready = position.epoch, position.epoch + begun
    epochs = _ProcessedTracker(ready=ready, started=ready, processed=done, completed=done)
    steps, batches = position.step, position.batches
    steps_taken = _ReadyCompletedTracker(position.optimizer_steps, position.optimizer_steps)
    # A validation of which one batch was begun is run anew, from its first batch, if one is due.
    pending = int(begun and not position.validated)
    validation = _ProcessedTracker(ready=pending, started=pending)
    progress: dict[str, _BaseProgress] = {
        "epoch_progress": _Progress(epochs, epochs),
        "epoch_loop.batch_progress": _BatchProgress(_all(batches), _all(steps)),
        "epoch_loop.scheduler_progress": _SchedulerProgress(),
        "epoch_loop.automatic_optimization.optim_progress": _OptimizationProgress(),
        "epoch_loop.manual_optimization.optim_step_progress": _Progress(steps_taken, steps_taken),
        "epoch_loop.val_loop.batch_progress": _BatchProgress(validation, validation),
    }
    own: dict[str, Any] = {
        "state_dict": {"ended": position.ended},
        "epoch_loop.state_dict": {"_batches_that_stepped": batches},
    }
    for name in ("automatic_optimization", "manual_optimization", "val_loop"):
        own[f"epoch_loop.{name}.state_dict"] = {}
    return own | {name: asdict(value) for name, value in progress.items()}


def _all(count: int) -> _ProcessedTracker:
    return _ProcessedTracker(ready=count, started=count, processed=count, completed=count)
