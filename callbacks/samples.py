"""A few responses in words while a run trains: in the terminal, in loggers that take text, and in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import lightning as L
from dirl.callbacks.ending import ended_together
from dirl.callbacks.rollout import Rollout
from lightning.pytorch.loggers import Logger
from rich.console import Console
from tqdm.std import tqdm

from dirl.finite import dumps
from dirl.modules import RLModule
from dirl.ranges import at_least
from dirl.report.run_samples import FILE, sample_row
from dirl.report.sample_texts import as_markdown, for_terminal
from dirl.rollout.response import response_text
from dirl.seeds import derived_seed
from dirl.trajectory_files import Annotation
from dirl.types import Prompt, Trajectory

TAG = "samples"
"""Under which loggers have them."""
COLUMNS = ("epoch", "step", "question", "response", "ground_truth", "reward", "correct")
"""The columns of a logger's table."""


@final
class Samples(L.Callback):
    """Shows a few responses of the rollout, with question, truth and rewards, every so many epochs.

    They are of those that are learned from anyway, so nothing more is generated, and are drawn by the seed of the
    rollout, from different prompts. The first process shows its own: in the terminal, as text in each logger that takes
    text (TensorBoard, W&B, MLflow, Comet), and in `samples.jsonl` beside metrics.csv, for `lightning run report`.

    Args:
        every_n_epochs: how often, from the first epoch on; the last one is shown too.
        count: responses.
        terminal: print them.
        max_characters: of a text in the terminal; the others have all of it.
    """

    def __init__(
        self, every_n_epochs: int = 10, count: int = 3, terminal: bool = True, max_characters: int = 800
    ) -> None:
        at_least(1, "samples", every_n_epochs=every_n_epochs, count=count, max_characters=max_characters)
        self.every_n_epochs, self.count = every_n_epochs, count
        self.terminal, self.max_characters = terminal, max_characters
        self.folder: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        callbacks: list[Any] = list(trainer.callbacks)
        place = next((k for k, callback in enumerate(callbacks) if isinstance(callback, Rollout)), None)
        if place is None or place > callbacks.index(self):
            raise ValueError("samples: shows responses of the Rollout callback, which must stand before it")

    def on_train_start(self, trainer: L.Trainer, pl_module: RLModule) -> None:
        self.folder = trainer.log_dir  # a broadcast: every rank asks for it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: RLModule) -> None:
        """After the rollout of the epoch. A run that is resumed within an epoch has shown its responses already."""
        epoch = trainer.current_epoch
        if epoch % self.every_n_epochs and epoch + 1 != trainer.max_epochs:
            return
        with ended_together(trainer, pl_module):  # what fails here on the first rank ends the others too
            if trainer.is_global_zero:
                self._show(trainer, pl_module)

    def _show(self, trainer: L.Trainer, pl_module: RLModule) -> None:
        rollout = next(c for c in trainer.callbacks if isinstance(c, Rollout))
        chosen = drawn(rollout.sampled, self.count, (rollout.seed, trainer.current_epoch))
        if not chosen:
            return
        asked = {prompt.prompt_id: prompt for prompt in trainer.datamodule.stream.prompts}
        rows = [self._row(trainer, pl_module, trajectory, asked[trajectory.prompt_id]) for trajectory in chosen]
        if self.terminal:
            tqdm.write(for_terminal(rows, self.max_characters, Console()))  # which lifts bars out of the way
        for logger in trainer.loggers:
            log_samples(logger, rows, trainer.global_step)
        if self.folder is not None and not trainer.fast_dev_run:
            path = Path(self.folder) / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(dumps(row, str(path), ensure_ascii=False) + "\n" for row in rows)

    def _row(self, trainer: L.Trainer, pl_module: RLModule, trajectory: Trajectory, prompt: Prompt) -> dict[str, Any]:
        text = response_text(trajectory, pl_module.description.tokenizer)
        words = Annotation(prompt.question, text, prompt.ground_truth)
        return sample_row(trainer.current_epoch, trainer.global_step, trajectory, words)


def drawn(trajectories: Sequence[Trajectory], count: int, seed: tuple[int, ...]) -> list[Trajectory]:
    """So many, one of a prompt, by a draw that does not ask in which order they finished."""
    by_prompt: dict[str, Trajectory] = {}
    for trajectory in sorted(trajectories, key=lambda t: derived_seed(*seed, *t.key)):
        by_prompt.setdefault(trajectory.prompt_id, trajectory)
    return list(by_prompt.values())[:count]


def log_samples(logger: Logger, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Log the samples as text, in the way of this logger; one that takes none is left alone."""
    experiment = getattr(logger, "experiment", None)
    if callable(write := getattr(logger, "log_text", None)):
        # W&B: a table; with a step, it would drop what came before
        write(TAG, columns=list(COLUMNS), data=[[str(row[name]) for name in COLUMNS] for row in rows])
    elif callable(write := getattr(experiment, "add_text", None)):  # TensorBoard
        write(TAG, as_markdown(rows), step)
    elif callable(write := getattr(experiment, "log_text", None)):
        run = getattr(logger, "run_id", None)
        if run is not None:  # MLflow: an artifact of the run
            write(run, as_markdown(rows), f"{TAG}/step{step:06d}.md")
        else:  # Comet
            write(as_markdown(rows), step=step)
