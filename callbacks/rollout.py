"""The rollout callback: each epoch, new weights into the engine, new groups into the buffer."""

import time
from pathlib import Path
from typing import Literal, final

import lightning as L
import torch
from dirl.callbacks.ending import ended_together
from dirl.callbacks.rollout_account import RolloutAccount
from dirl.callbacks.weight_push import push_weights

from dirl.advantages import Advantage
from dirl.batches import StepBatch
from dirl.data.rl import RLDataModule
from dirl.evaluation import ResponseMetrics
from dirl.modules import RLModule
from dirl.outputs import check_folder_name, check_writable
from dirl.progress_bar import bar, bars_shown, expect
from dirl.ranges import at_least, positive
from dirl.rewards import Reward, Scorer
from dirl.rl.collector import Collection, Collector
from dirl.rl.prefetch import RolloutPrefetch
from dirl.rl.staleness import check_stale, stale_groups
from dirl.rl.steps import cut_steps, step_batch
from dirl.rollout import RolloutEngine
from dirl.rollout.annotations import annotations
from dirl.rollout.lengths import check_positions
from dirl.seeds import run_seed
from dirl.stopping import request
from dirl.tasks import Task
from dirl.trajectory_files import write_trajectories
from dirl.types import Trajectory


@final
class Rollout(L.Callback):
    """Regenerates the groups of the RL DataModule at the start of every epoch.

    Args:
        rewards: their weighted sum is the reward; None: those of the task.
        engine: makes the trajectories. In configs it has a key of its own, `engine`.
        correct: name of the reward that says what is correct (above 0), for accuracies and dynamic sampling; None: the
            first that judges, as `accuracy` and `exact_answer` do and `boxed` and `length` do not.
        dynamic_sampling: drop groups that are all right or all wrong, or whose rewards have no spread, or of which the
            advantage says otherwise that they teach nothing, and refill.
        max_rounds: rounds of generation per epoch, refills included.
        oversample: prompts sampled per missing group; above 1 saves rounds where many groups are dropped, and
            what is left over is used by the next epoch (see `rollout/stale_groups`), and dropped if that one does not
            need it either. Needs the truncated importance weight (`objective.importance_cap`), as those are samples of
            older weights.
        advantage: of a group's rewards, by class; None: `dirl.advantages.ZScore`.
        reward_workers: processes for rewards that are not cheap.
        reward_timeout_s: time limit of one reward.
        on_reward_error: `raise`, or `drop_group` and count it.
        overlap: generate the next epoch's rollout while the trainer works on this one's, with the weights from before:
            at most one policy version old, which needs the truncated importance weight (`objective.importance_cap`) and
            an engine that does not sleep. What is left over (`oversample`) is dropped then.
        save_trajectories: folder, relative to `trainer.default_root_dir`, that gets every epoch's trajectories as
            JSON Lines; None: not written.
        save_texts: question, truth and the response in words beside the ids in these files.
        seed: of the requests; None: that of `seed_everything`.
        max_empty_rollouts: rollouts in a row that may bring no group to learn from; one more ends the run.
    """

    def __init__(
        self,
        rewards: list[Reward] | None = None,
        engine: RolloutEngine | None = None,
        dynamic_sampling: bool = False,
        max_rounds: int = 4,
        oversample: float = 1.0,
        advantage: Advantage | None = None,
        reward_workers: int = 2,
        reward_timeout_s: float = 10.0,
        on_reward_error: Literal["raise", "drop_group"] = "raise",
        overlap: bool = False,
        save_trajectories: str | None = None,
        save_texts: bool = False,
        seed: int | None = None,
        correct: str | None = None,
        max_empty_rollouts: int = 10,
    ) -> None:
        if max_rounds < 1:
            raise ValueError(f"rollout.max_rounds={max_rounds}: use at least 1")
        at_least(1, "rollout", oversample=oversample, reward_workers=reward_workers)
        positive("rollout", reward_timeout_s=reward_timeout_s)
        if save_texts and save_trajectories is None:
            raise ValueError("rollout.save_texts=true: no trajectories are written; name rollout.save_trajectories too")
        check_folder_name(save_trajectories, "rollout.save_trajectories")
        if max_empty_rollouts < 0:
            raise ValueError(f"rollout.max_empty_rollouts={max_empty_rollouts}: use 0 to end at the first, or more")
        self.engine = engine
        self._scoring = (reward_workers, reward_timeout_s, on_reward_error, correct)
        self.scorer = None if rewards is None else Scorer(rewards, *self._scoring)
        self.correct = correct if self.scorer is None else self.scorer.correctness.name
        self.dynamic_sampling, self.max_rounds, self.oversample = dynamic_sampling, max_rounds, oversample
        self.advantage, self.overlap = advantage, overlap
        self.save_trajectories, self.save_texts = save_trajectories, save_texts
        self.seed = run_seed(seed, "rollout.seed")
        self.account = RolloutAccount(max_empty_rollouts)
        self.sampled: list[Trajectory] = []  # of this epoch's rollout, until a step learns from it

    def score_by(self, task: Task) -> Scorer:
        """Take the task's rewards, if no others were given."""
        if self.scorer is not None:
            return self.scorer
        rewards = task.rewards()
        if not rewards:
            raise ValueError(
                f"rollout.rewards: none are given, and the task ({type(task).__name__}) names none; name at least one, "
                "e.g. [{class_path: dirl.rewards.Accuracy}]"
            )
        self.scorer = Scorer(rewards, *self._scoring)
        self.correct = self.scorer.correctness.name
        return self.scorer

    def scorer_of(self, rewards: list[Reward], correct: str | None) -> Scorer:
        """The scorer of other rewards, with the workers and limits of these."""
        return Scorer(rewards, *self._scoring[:3], correct)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, RLModule) or not isinstance(trainer.datamodule, RLDataModule):
            raise ValueError("the Rollout callback works with dirl.modules.RLModule and dirl.data.rl.RLDataModule")
        if stage != "fit":
            return
        if self.engine is None:
            raise ValueError("engine: none is given, so nothing makes rollouts; put configs/engine/torch.yaml on top")
        self._check_settings(pl_module)
        assert trainer.datamodule.task is not None, "the DataModule is set up before the callbacks"
        scorer = self.score_by(trainer.datamodule.task)
        if self.save_trajectories is not None and trainer.is_global_zero:
            check_writable(Path(trainer.default_root_dir) / self.save_trajectories, "rollout.save_trajectories")
        trainer.datamodule.prefetch = RolloutPrefetch()
        description = pl_module.description
        device = str(trainer.strategy.root_device)
        prompts, named = trainer.datamodule.stream.prompts, {"decoding": pl_module.decoding}
        check_positions(prompts, named, description.config, description.spec.block_size, self.engine)
        self._data = trainer.datamodule
        self.engine.still_wanted = self._still_wanted
        scorer.ask(self._still_wanted)
        self.engine.setup(description.config, description.tokenizer, description.spec, device)
        self.account.metrics = ResponseMetrics(
            [r.name for r in scorer.rewards],
            description.spec.block_size,
            [trainer.datamodule.group_size],
            self.correct,
        )
        self.collector = Collector(
            self.engine,
            scorer,
            description.tokenizer,
            description.spec,
            trainer.datamodule.group_size,
            self.dynamic_sampling,
            self.max_rounds,
            self.oversample,
            self.advantage,
            self.seed,
        )

    def _still_wanted(self) -> None:
        """Engine and rewards call it while they work, in whatever thread: it raises if the run ends."""
        request.check()
        self._data.prefetch.check()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: RLModule) -> None:
        if trainer.datamodule.buffer.epoch != trainer.current_epoch:
            self.regenerate(trainer, pl_module)

    def regenerate(self, trainer: L.Trainer, pl_module: RLModule) -> None:
        """One rollout: push, generate, score, cut into steps, score by the old policy, fill the buffer."""
        data: RLDataModule = trainer.datamodule
        pl_module.before_rollout()
        try:
            with data.making_rollout():
                collection, times = self._next_collection(trainer, pl_module)
                stale = torch.tensor(stale_groups(collection.groups, trainer.global_step), dtype=torch.float64)
                if pl_module.sum_over_processes(stale):  # also surplus of a checkpoint, though oversample is 1 now
                    check_stale("this rollout", pl_module.objective, pl_module.decoding)
                data.surplus = collection.surplus
                started = time.perf_counter()
                steps = self._steps(collection, pl_module, data, trainer.current_epoch)
                scored = pl_module.score_steps(steps, len(data.buffer) > 1, first_too=data.passes > 1)
                data.buffer.fill(trainer.current_epoch, scored)
                times["score_s"] = time.perf_counter() - started
        finally:
            pl_module.after_rollout()
        self.account.take(trainer, pl_module, collection, times)
        self.sampled = collection.sampled or [trajectory for group in collection.groups for trajectory in group]

    def _steps(self, collection: Collection, pl_module: RLModule, data: RLDataModule, epoch: int) -> list[StepBatch]:
        return [
            step_batch(
                groups,
                pl_module.spec,
                pl_module.objective,
                pl_module.decoding.max_response_tokens,
                data.token_budget,
                data.share_prompt,
                (self.seed, epoch),
            )
            for groups in data.of_share(cut_steps(collection.groups, data.steps_per_rollout, collection.steps))
        ]

    def _next_collection(self, trainer: L.Trainer, pl_module: RLModule) -> tuple[Collection, dict[str, float]]:
        """This epoch's groups, made now or prefetched; with `overlap`, the next epoch's are begun before it returns."""
        data: RLDataModule = trainer.datamodule
        epoch, started = trainer.current_epoch, time.perf_counter()
        push_s = 0.0
        assert self.engine is not None, "`setup` refuses a run without"
        with ended_together(trainer, pl_module):
            collection = data.prefetch.take(epoch)
        if collection is None:
            push_s += push_weights(self.engine, trainer, pl_module)
            dealt = data.deal_prompts()
            with ended_together(trainer, pl_module):
                collection = self._collect(trainer, pl_module, epoch, dealt)
        data.lengths.take(collection.sampled)
        waited = time.perf_counter() - started - push_s
        if self.overlap and epoch + 1 != trainer.max_epochs:
            push_s += push_weights(self.engine, trainer, pl_module)
            begun_at, dealt = data.stream.state_dict(), data.deal_prompts()
            data.prefetch.start(
                epoch + 1, lambda: self._collect(trainer, pl_module, epoch + 1, dealt, prefetched=True), begun_at
            )
        else:
            self.engine.sleep()
        return collection, {"push_s": push_s, "rollout_s": waited}

    def _collect(
        self, trainer: L.Trainer, pl_module: RLModule, epoch: int, dealt: list[int], prefetched: bool = False
    ) -> Collection:
        data: RLDataModule = trainer.datamodule
        shown = bars_shown(trainer) and not prefetched
        with bar(total=0, desc=f"rollout {epoch}", shown=shown, leave=False) as progress_bar:
            collection = self.collector.collect(
                data.stream,
                sum(dealt),
                pl_module.decoding,
                () if self.overlap else data.surplus,
                epoch=epoch,
                finished=progress_bar.update,
                asked=lambda count: expect(progress_bar, count),
            )
        collection.steps = dealt
        if self.overlap:
            collection.counts["dropped_stale"] += len(collection.surplus)
            collection.surplus = []
        if self.save_trajectories is not None:
            name = f"epoch{epoch:04d}-rank{trainer.global_rank}.jsonl"
            write_trajectories(
                Path(trainer.default_root_dir) / self.save_trajectories / name,
                (t for g in collection.groups for t in g),
                annotations(data.stream.prompts, pl_module.description) if self.save_texts else None,
            )
        return collection

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: RLModule, *args: object) -> None:
        """Log the rollout with the first step that learns from it: it may have been made outside of any hook."""
        self.account.log(pl_module)
        self.sampled = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: RLModule) -> None:
        """Log the rollout, also where a run is resumed after the last step of an epoch."""
        self.account.log(pl_module)
        self.account.values = {}

    def state_dict(self) -> dict:
        return self.account.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.account.load_state_dict(state_dict)

    def _check_settings(self, pl_module: RLModule) -> None:
        reasons = {
            "rollout.overlap=true": self.overlap,
            f"rollout.oversample={self.oversample:g}, whose surplus the next rollout uses,": self.oversample > 1,
            f"engine={type(self.engine).__name__}": self.engine.stale,
        }
        for reason in (reason for reason, given in reasons.items() if given):
            check_stale(reason, pl_module.objective, pl_module.decoding)
        if self.overlap and self.engine.sleeps:
            raise ValueError("rollout.overlap=true keeps the engine at work beside the trainer: set engine.sleep=false")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lightning calls no `teardown` after an error."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.datamodule, RLDataModule):
            trainer.datamodule.prefetch.close()
        if self.engine is not None:
            self.engine.close()
        if self.scorer is not None:
            self.scorer.close()
