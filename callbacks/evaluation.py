"""Evaluation during training: the same path as the `evaluate` command, on the engine of the run."""

from pathlib import Path
from typing import final

import lightning as L
from dirl.callbacks.ending import ended_together
from dirl.callbacks.rollout import Rollout, push_weights

from dirl.data.rl import RLDataModule
from dirl.evaluation import run_evaluation
from dirl.finite import dumps
from dirl.modules.base import BlockDiffusionModule
from dirl.progress_bar import bar, bars_shown
from dirl.rollout.lengths import check_positions
from dirl.types import DecodingParams


@final
class Evaluate(L.Callback):
    """Samples responses to the validation prompts of the RL DataModule and logs their metrics.

    Uses the engine and the rewards of the `Rollout` callback. `ModelCheckpoint(monitor=eval/NAME/accuracy)` finds the
    values at the end of an epoch that is evaluated (give it the same `every_n_epochs`), and so does an EarlyStopping
    that stands behind this callback.

    Args:
        decoding: settings by name; each is evaluated and logged as `eval/NAME/...`.
        samples: responses per prompt (greedy decoding: one).
        every_n_epochs: how often; the last epoch is always evaluated.
        at_start: evaluate before the first update too.
    """

    def __init__(
        self, decoding: dict[str, DecodingParams], samples: int = 1, every_n_epochs: int = 10, at_start: bool = True
    ) -> None:
        if not decoding:
            raise ValueError("evaluate.decoding is empty: name at least one setting, e.g. {greedy: {temperature: 0}}")
        if samples < 1 or every_n_epochs < 1:
            raise ValueError(f"evaluate.samples={samples}, every_n_epochs={every_n_epochs}: use at least 1")
        self.decoding, self.samples = decoding, samples
        self.every_n_epochs, self.at_start = every_n_epochs, at_start
        self.history: list[dict[str, float]] = []
        self.evaluated = -1
        """Epochs that were done at the last evaluation."""

    def setup(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, stage: str) -> None:
        if not isinstance(trainer.datamodule, RLDataModule) or not trainer.datamodule.val_prompts:
            raise ValueError(
                "the Evaluate callback needs dirl.data.rl.RLDataModule with prompts to evaluate on: set data.val, or "
                "take a task that has some"
            )
        description = pl_module.description
        named = {f"evaluate.decoding.{name}": decoding for name, decoding in self.decoding.items()}
        rollout = next((c for c in trainer.callbacks if isinstance(c, Rollout)), None)
        if rollout is None:
            raise ValueError(
                "the Evaluate callback uses the engine of the Rollout callback: add dirl.callbacks.Rollout"
            )
        prompts, size = trainer.datamodule.val_prompts, description.spec.block_size
        check_positions(prompts, named, description.config, size, rollout.engine)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        if self.at_start and trainer.global_step == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step >= trainer.max_steps > 0
        if last or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch + 1)
            for name, value in self.history[-1].items():  # for callbacks that monitor; loggers have them
                if name != "step" and not name.endswith("/seconds"):  # each rank has seconds of its own
                    pl_module.log(name, value, on_step=False, on_epoch=True, logger=False, batch_size=1)

    def _run_once(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, epochs: int) -> None:
        """Not again where a run was resumed in the very hook in which it had evaluated."""
        if epochs > self.evaluated:
            self._run(trainer, pl_module)
            self.evaluated = epochs

    def _run(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        rollout = next(c for c in trainer.callbacks if isinstance(c, Rollout))
        trainer.datamodule.prefetch.wait()
        row = {"step": float(trainer.global_step)}
        pl_module.before_rollout()
        try:
            push_weights(rollout.engine, trainer, pl_module)
            for name, decoding in self.decoding.items():
                metrics = self._evaluate(rollout, trainer, pl_module, name, decoding)
                row |= {f"eval/{name}/{metric}": value for metric, value in metrics.items()}
            rollout.engine.sleep()
        finally:
            pl_module.after_rollout()
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        folder = trainer.log_dir  # a broadcast: every rank asks for it
        if trainer.is_global_zero and folder is not None:
            path = Path(folder) / "evaluation.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dumps(self.history, str(path), indent=1), encoding="utf-8")

    def _evaluate(
        self, rollout: Rollout, trainer: L.Trainer, pl_module: BlockDiffusionModule, name: str, decoding: DecodingParams
    ) -> dict[str, float]:
        prompts = trainer.datamodule.val_prompts[trainer.global_rank :: trainer.world_size]
        total = len(prompts) * (1 if decoding.temperature == 0 else self.samples)
        shown = bars_shown(trainer)
        with bar(total=total, desc=f"evaluate {name}", shown=shown, leave=False) as progress_bar:
            result = run_evaluation(
                rollout.engine,
                prompts,
                rollout.scorer,
                decoding,
                pl_module.spec,
                pl_module.description.tokenizer,
                self.samples,
                device=str(pl_module.device),
                finished=progress_bar.update,
                generating=ended_together(trainer, pl_module),
            )
        return result.metrics

    def state_dict(self) -> dict:
        return {"history": self.history, "evaluated": self.evaluated}

    def load_state_dict(self, state_dict: dict) -> None:
        self.history, self.evaluated = state_dict["history"], state_dict["evaluated"]
