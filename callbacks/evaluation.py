"""Evaluation during training: the same path as the `evaluate` command, on the engine of the run."""

from pathlib import Path
from typing import Any, NamedTuple, final

import lightning as L
from dirl.callbacks.ending import ended_together
from dirl.callbacks.rollout import Rollout
from dirl.callbacks.weight_push import push_weights

from dirl.data.rl import RLDataModule
from dirl.evaluation import Evaluation, EvaluationTask, Settings, run_evaluation
from dirl.evaluation.in_training import in_order, write_evaluation
from dirl.evaluation.problems import Problem, unjudged
from dirl.evaluation.provenance import described, made_by, part_settings, task_label
from dirl.evaluation.results import Result
from dirl.evaluation.run import TIMED
from dirl.evaluation.tasks import named_tasks
from dirl.finite import dumps
from dirl.modules.base import BlockDiffusionModule
from dirl.progress_bar import bar, bars_shown
from dirl.ranges import at_least
from dirl.rewards import Scorer
from dirl.rollout.lengths import check_positions
from dirl.stopping import request
from dirl.tasks import Task
from dirl.types import DecodingParams, Prompt


class Part(NamedTuple):
    """One column of an evaluation: prompts of all ranks, how they are answered, and who judges."""

    task: str
    """The name of the task."""
    decoding: str
    prompts: list[Prompt]
    scorer: Scorer
    settings: Settings
    asked: dict[str, Any]
    """All that decides its numbers, but for the weights, as plain values."""
    named: bool
    """Whether the task is one of several."""

    @property
    def name(self) -> str:
        return f"{self.task}/{self.decoding}" if self.named else self.decoding


@final
class Evaluate(L.Callback):
    """Samples responses to the validation prompts of the RL DataModule, or to those of tasks, and logs their metrics.

    Uses the engine and, without `tasks`, the rewards of the `Rollout` callback. `ModelCheckpoint(monitor=
    eval/NAME/accuracy)` finds the values at the end of an epoch that is evaluated (give it the same `every_n_epochs`),
    and so does an EarlyStopping that stands behind this callback.

    Args:
        decoding: settings by name; each is evaluated and logged as `eval/NAME/...`.
        samples: responses per prompt (greedy decoding: one).
        every_n_epochs: how often; the last epoch is always evaluated.
        at_start: evaluate before the first update too.
        tasks: what is evaluated in place of the validation prompts, by name: a task, or one with rewards, decoding and
            samples of its own; logged as `eval/TASK/NAME/...`. Prompts keep to the limits of `data`.
        resamples: of the bootstrap over problems that gives intervals, logged as `.../low` and `.../high`; 0: none.
        problems: each evaluation leaves what it found problem by problem in `evaluations/step-N` beside the logs, which
            `compare` reads as it does the folders of `evaluate`.
    """

    def __init__(
        self,
        decoding: dict[str, DecodingParams] | None = None,
        samples: int = 1,
        every_n_epochs: int = 10,
        at_start: bool = True,
        tasks: dict[str, Task | EvaluationTask] | None = None,
        resamples: int = 1000,
        problems: bool = True,
    ) -> None:
        at_least(1, "evaluate", samples=samples, every_n_epochs=every_n_epochs)
        at_least(0, "evaluate", resamples=resamples)
        self.tasks = named_tasks(tasks, decoding, samples, "evaluate.") if tasks else None
        if not decoding and not tasks:
            raise ValueError("evaluate.decoding is empty: name at least one setting, e.g. {greedy: {temperature: 0}}")
        self.decoding, self.samples, self.resamples = decoding or {}, samples, resamples
        self.every_n_epochs, self.at_start, self.problems = every_n_epochs, at_start, problems
        self.parts: list[Part] = []
        """What is evaluated each time."""
        self.history: list[dict[str, float]] = []
        self.evaluated = -1
        """Epochs that were done at the last evaluation."""

    def setup(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, stage: str) -> None:
        data = trainer.datamodule
        if not isinstance(data, RLDataModule) or not (data.val_prompts or self.tasks):
            raise ValueError(
                "the Evaluate callback needs dirl.data.rl.RLDataModule with prompts to evaluate on: set data.val, take "
                "a task that has some, or name some under evaluate.tasks"
            )
        rollout = next((c for c in trainer.callbacks if isinstance(c, Rollout)), None)
        if rollout is None:
            raise ValueError(
                "the Evaluate callback uses the engine of the Rollout callback: add dirl.callbacks.Rollout"
            )
        self.parts = self._parts(rollout, data, pl_module)
        description = pl_module.description
        for part in self.parts:
            named = {f"evaluate.decoding.{part.name}": part.settings.decoding}
            check_positions(part.prompts, named, description.config, description.spec.block_size, rollout.engine)

    def _parts(self, rollout: Rollout, data: RLDataModule, pl_module: BlockDiffusionModule) -> list[Part]:
        def part(task: Task, name: str | None, key: str, prompts: list[Prompt], scorer: Scorer, own: Settings) -> Part:
            model, engine = {"run": str(data.trainer.default_root_dir)}, rollout.engine
            asked = part_settings(model, described(task), prompts, scorer, own, engine, described(engine))
            return Part(name or task_label(task), key, prompts, scorer, own, asked, name is not None)

        if self.tasks is None:
            assert data.task is not None, "its own setup came before"
            own = {n: Settings(one, self.samples, resamples=self.resamples) for n, one in self.decoding.items()}
            return [part(data.task, None, key, data.val_prompts, rollout.scorer, one) for key, one in own.items()]
        parts = []
        for name, task in self.tasks.items():
            prompts = data.prompts_of(task.task, task.split or "val", pl_module.description, f"evaluate.{name}")[
                : task.limit
            ]
            if not prompts:
                raise ValueError(
                    f"evaluate.tasks.{name}: {task.task.origin(task.split or 'val')} has no prompts; name another task"
                )
            scorer = rollout.scorer_of(task.scored_by(f"evaluate.tasks.{name}"), task.correct)
            _ = scorer.correctness  # an error now and not in an hour
            scorer.ask(request.check)  # it ends with the run
            for key, decoding in (task.decoding or {}).items():
                settings = Settings(decoding, task.samples or 1, resamples=self.resamples)
                parts.append(part(task.task, name, key, prompts, scorer, settings))
        return parts

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        if self.at_start and trainer.global_step == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step >= trainer.max_steps > 0
        if last or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch + 1)
            for name, value in self.history[-1].items():  # for callbacks that monitor; loggers have them
                if name != "step" and not name.endswith(TIMED):  # each rank has seconds of its own
                    pl_module.log(name, value, on_step=False, on_epoch=True, logger=False, batch_size=1)

    def _run_once(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, epochs: int) -> None:
        """Evaluate, but not again where a run was resumed in the very hook in which it had evaluated."""
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
            found = [self._evaluate(rollout, trainer, pl_module, part) for part in self.parts]
            starts = [made_by(rollout.engine, str(pl_module.device))]
            rollout.engine.sleep()
        finally:
            pl_module.after_rollout()
        for part, evaluation in zip(self.parts, found, strict=True):
            row |= {f"eval/{part.name}/{metric}": value for metric, value in evaluation.metrics.items()}
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        everyones = (
            trainer.datamodule.gathered([evaluation.problems for evaluation in found]) if self.problems else None
        )
        folder = trainer.log_dir  # a broadcast: every rank asks for it
        if trainer.is_global_zero and folder is not None:
            path = Path(folder) / "evaluation.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dumps(self.history, str(path), indent=1), encoding="utf-8")
            if everyones is not None:
                problems = [in_order(ranks) for ranks in zip(*everyones, strict=True)]
                step, size = trainer.global_step, pl_module.spec.block_size
                rows = zip(self.parts, found, problems, strict=True)
                write_evaluation(path.parent, step, [self._result(*each, step, size, starts) for each in rows])

    def _result(
        self, part: Part, found: Evaluation, problems: list[Problem], step: int, size: int, starts: list[dict[str, Any]]
    ) -> Result:
        return Result(
            model=f"step {step}",
            task=part.task,
            decoding=part.decoding,
            block_size=size,
            metrics=found.metrics,
            settings=part.asked,
            starts=starts,
            problems=len(problems),
            file=f"problems/{part.name}.jsonl",
            unjudged=unjudged(problems),
            notes=[],
            kept=problems,
        )

    def _evaluate(
        self, rollout: Rollout, trainer: L.Trainer, pl_module: BlockDiffusionModule, part: Part
    ) -> Evaluation:
        prompts = part.prompts[trainer.global_rank :: trainer.world_size]
        total, shown = len(prompts) * part.settings.count, bars_shown(trainer)
        with bar(total=total, desc=f"evaluate {part.name}", shown=shown, leave=False) as progress_bar:
            result = run_evaluation(
                rollout.engine,
                prompts,
                part.scorer,
                part.settings,
                pl_module.spec,
                pl_module.description.tokenizer,
                device=str(pl_module.device),
                finished=progress_bar.update,
                generating=ended_together(trainer, pl_module),
            )
        if self.tasks is not None:
            part.scorer.close()  # its workers; the next evaluation starts new ones
        return result

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lightning calls no `teardown` after an error."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for part in self.parts if self.tasks is not None else []:
            part.scorer.close()

    def state_dict(self) -> dict:
        return {"history": self.history, "evaluated": self.evaluated}

    def load_state_dict(self, state_dict: dict) -> None:
        self.history, self.evaluated = state_dict["history"], state_dict["evaluated"]
