"""Checkpoints: Lightning's ModelCheckpoint, which keeps the newest unless told otherwise."""

from datetime import timedelta
from typing import Any, Literal, final

from lightning.pytorch.callbacks import ModelCheckpoint


@final
class Checkpoint(ModelCheckpoint):
    """Writes the state of the run to `logs/version_N/checkpoints`; `--ckpt_path last` goes on from the newest.

    Further ones, as of the best by a metric, are Lightning's ModelCheckpoint among `trainer.callbacks`.

    Args:
        every_n_epochs: how often; of RL, an epoch is a rollout.
        every_n_train_steps: how often, in optimizer steps, in place of epochs.
        train_time_interval: how often by the clock, e.g. `00:30:00`, in place of both.
        save_top_k: how many to keep; -1: all. Without `monitor`, 1 is the newest, and other numbers need one.
        save_last: `link`: `last.ckpt` names the newest; true: a copy; null: neither.
        monitor: a metric, as `eval/greedy/accuracy`, by which the best are kept.
        mode: whether the best is the least or the greatest.
        filename: pattern of the names; null: by epoch and step.
        dirpath: another folder.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        save_top_k: int = 1,
        save_last: bool | Literal["link"] | None = "link",
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        filename: str | None = None,
        dirpath: str | None = None,
    ) -> None:
        options: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(**options)

    @property
    def state_key(self) -> str:
        """ModelCheckpoint's, so that a run goes on whichever of the two it has."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
