"""The RL DataModule: prompts in an endless seeded stream, and the buffer that the rollouts fill."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import lightning as L
import torch.distributed
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dirl.checkpoints.settings import check_same
from dirl.data.prompt_stream import PromptStream, prompts_digest
from dirl.data.step_loader import StepLoader, check_sampler, steps_done
from dirl.data_ranks import data_rank
from dirl.models import ModelDescription
from dirl.progress_bar import bars_shown
from dirl.ranges import at_least
from dirl.reading.chat import FitCounts
from dirl.reading.encoding import check_on_bad_row
from dirl.reading.prompts import PromptEncoder
from dirl.reading.rows import OnBadRow
from dirl.rl.buffer import RolloutBuffer
from dirl.rl.collector import Collection, collection_from_state, collection_state, trajectories, trajectory_rows
from dirl.rl.dealing import ResponseLengths, deal
from dirl.rl.prefetch import RolloutPrefetch
from dirl.rl.redistribution import redistribute, redistribute_buffers
from dirl.seeds import run_seed
from dirl.tasks import Files, Split, Task
from dirl.tasks.given import check_given_once, said_of_files
from dirl.types import Prompt, Trajectory

log = logging.getLogger(__name__)


class RLDataModule(L.LightningDataModule):
    """Questions with checkable answers, and how a rollout is cut into optimizer steps.

    Args:
        train: file, folder, list of them, or hub name: short for a task of `dirl.tasks.Files`, of which this has the
            options (`val`, both columns, `system_prompt`, `prompt_template`). None: a task is given.
        val: the same for evaluation; None: no evaluation.
        prompts_per_rollout: groups per rollout (one Lightning epoch), over all ranks.
        group_size: responses per prompt.
        steps_per_rollout: optimizer steps that one rollout is cut into.
        passes: times that the rollout is gone through.
        token_budget: packed tokens per micro-batch.
        share_prompt: one copy of the prompt for all responses of a group that fit the budget.
        max_prompt_tokens: longest prompt, chat template included.
        overflow: what happens to longer ones: drop or error.
        question_column: column of the question; names of nested values have dots (`extra_info.question`).
        answer_column: column of the ground truth: a text, a number, a list of all that an answer must have; rows where
            it is null are skipped and counted. Rewards get the other columns as `info`.
        system_prompt: put before every question.
        max_val_prompts: evaluate on the first so many; None: all.
        seed: of the order of the prompts; None: that of `seed_everything`.
        prompt_template: what is asked, with `{question}` in it: rewards look for answers in a form that the model must
            be told of. None: the question alone.
        on_bad_row: a row that cannot be used is an error, or is skipped and counted.
        task: what is learned. In configs it has a key of its own, `task`.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        prompts_per_rollout: int = 128,
        group_size: int = 8,
        steps_per_rollout: int = 1,
        passes: int = 1,
        token_budget: int = 16384,
        share_prompt: bool = True,
        max_prompt_tokens: int = 1024,
        overflow: Literal["drop", "error"] = "drop",
        question_column: str = "question",
        answer_column: str = "ground_truth_answer",
        system_prompt: str | None = None,
        chat_template_kwargs: dict | None = None,
        max_val_prompts: int | None = None,
        seed: int | None = None,
        prompt_template: str | None = None,
        on_bad_row: OnBadRow = "error",
        task: Task | None = None,
    ) -> None:
        super().__init__()
        check_on_bad_row(on_bad_row)
        check_rollout(prompts_per_rollout, steps_per_rollout, group_size)
        counts = {"passes": passes, "token_budget": token_budget, "max_prompt_tokens": max_prompt_tokens}
        at_least(1, "data", **counts, max_val_prompts=max_val_prompts)
        self.files = Files(train, val, question_column, answer_column, system_prompt, prompt_template)
        self.task: Task | None = None
        if task is not None or train is not None:
            self.take(task)
        self.prompts_per_rollout, self.group_size, self.passes = prompts_per_rollout, group_size, passes
        self.steps_per_rollout = steps_per_rollout
        self.token_budget, self.share_prompt = token_budget, share_prompt
        self.max_prompt_tokens, self.overflow, self.max_val_prompts = max_prompt_tokens, overflow, max_val_prompts
        self.chat_template_kwargs, self.seed = chat_template_kwargs, run_seed(seed, "data.seed")
        self.on_bad_row = on_bad_row
        self.buffer = RolloutBuffer(steps_per_rollout, passes)
        self.counts: dict[str, FitCounts] = {}
        self._gloo: torch.distributed.ProcessGroup | None = None
        self._beside: torch.distributed.ProcessGroup | None = None
        self.val_prompts: list[Prompt] = []
        self.surplus: list[list[Trajectory]] = []
        """Groups that the last rollout made beyond the wanted number."""
        self.prefetch = RolloutPrefetch()
        """The next epoch's rollout, with `Rollout.overlap`."""
        self.lengths = ResponseLengths()
        self._before: tuple | None = None

    def take(self, task: Task | None) -> None:
        """Learn this task, or, with None, the files of the own options; ValueError for both or neither."""
        check_given_once(task, self.files.sources)
        if unused := said_of_files(task, self.files.options()):
            rank_zero_warn(unused)
        self.task = task or self.files

    def setup(self, stage: str) -> None:
        if self.task is None:
            self.take(None)
        assert self.task is not None
        check_sampler(self.trainer)
        trainer, description = self.trainer, self.trainer.lightning_module.description
        assert isinstance(description, ModelDescription)
        if stage == "fit" and not hasattr(self, "stream"):
            prompts = self.prompts_of(self.task, "train", description, "train")
            self.stream = PromptStream(prompts, self.seed, trainer.global_rank, trainer.world_size)
            self._check_size(len(prompts))
            say_if_unused(len(self.buffer), trainer.limit_train_batches, bool(trainer.fast_dev_run))
        if not self.val_prompts:
            self.val_prompts = self.prompts_of(self.task, "val", description, "val")[: self.max_val_prompts]

    def deal_prompts(self) -> list[int]:
        """Deal this process its share of the next rollout's prompts; returns how many of them are in each step.

        All processes call it. They are dealt by the tokens that are to be expected, see `dirl.rl.dealing`.
        """
        stream, share = self.stream, (self.stream.taken, self.lengths.pending)
        every = self._of_all(share)
        stream.settle(chain.from_iterable(taken for taken, _ in every))
        self.lengths.settle([pending for _, pending in every])
        places = stream.free_places(self.prompts_per_rollout)
        prompts = [(prompt.prompt_id, len(prompt.input_ids)) for prompt in map(stream.at, places)]
        costs = self.lengths.costs(prompts, self.group_size)
        own = deal(costs, self.steps_per_rollout, stream.world_size)[stream.rank]
        stream.deal([places[item] for item in own.items], places[-1] + 1)
        return own.steps

    def _of_all(self, own: Any) -> list[Any]:
        """What each process has, in their order; a collective."""
        every: list[Any] = [own] * self.stream.world_size
        if self.stream.world_size > 1:
            torch.distributed.all_gather_object(every, own, group=self._host_group())
        return every

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self.buffer, len(self.buffer), steps_done(self.trainer))

    @contextmanager
    def making_rollout(self) -> Iterator[None]:
        """A checkpoint written in here has the state from before: a resumed run makes the rollout anew.

        So has one written after an error in here, which leaves the state as it was.
        """
        self._before = self._rollout_state()
        yield
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        """Every rank's place in the stream, surplus and, in mid-epoch, buffer. All ranks call it, the first has it."""
        position = self.trainer.lightning_module.position
        share = data_rank(self.trainer)
        needed = self.buffer.epoch == position.epoch and self._before is None and share.leads
        stream, surplus, prefetched, lengths = self._before or self._rollout_state()
        own = {
            "stream": stream,
            "pending": lengths.pending,
            "surplus": [trajectory_rows(group) for group in surplus],
            "prefetched": None if prefetched is None else collection_state(prefetched),
            "buffer": (self.buffer if needed else RolloutBuffer(1, 1)).state_dict(),
        }
        alike = {"tensor_size": share.tensor_size, "lengths": lengths.known}
        return {"settings": self.settings(), "ranks": self.gathered(own), **alike}

    def _rollout_state(self) -> tuple[dict[str, Any], list[list[Trajectory]], Collection | None, ResponseLengths]:
        prefetched, begun_at = self.prefetch.snapshot()
        return begun_at or self.stream.state_dict(), self.surplus, prefetched, self.lengths.copy()

    def gathered(self, own: Any) -> list[Any]:
        """What each rank has, for the first; all ranks call it. The others get a list without values."""
        if self.trainer.world_size == 1:
            return [own]
        ranks: list[Any] = [None] * self.trainer.world_size
        first = self.trainer.is_global_zero
        torch.distributed.gather_object(own, ranks if first else None, group=self._host_group())
        return ranks

    def of_share(self, steps: list[list[list[Trajectory]]]) -> list[list[list[Trajectory]]]:
        """The groups of each optimizer step, those of all processes that have this one's share of the data."""
        share = data_rank(self.trainer)
        if share.tensor_size == 1:
            return steps
        if self._beside is None:
            self._beside, _ = torch.distributed.new_subgroups(share.tensor_size, backend="gloo")
        every: list[Any] = [None] * share.tensor_size
        torch.distributed.all_gather_object(every, steps, group=self._beside)
        return [list(chain.from_iterable(parts)) for parts in zip(*every, strict=True)]

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have like the one before: the order of the prompts and the meaning of a step."""
        names = ("prompts_per_rollout", "group_size", "steps_per_rollout", "passes", "seed")
        return {name: getattr(self, name) for name in names} | {"train": self._train_digest}

    @cached_property
    def _train_digest(self) -> str:
        return prompts_digest(self.stream.prompts)

    def _host_group(self) -> torch.distributed.ProcessGroup:
        """A gloo group: pickled rollouts need not pass through the GPUs."""
        if self._gloo is None:
            self._gloo = torch.distributed.new_group(backend="gloo")
        return self._gloo

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_same("data", state_dict["settings"], self.settings())
        ranks, world_size = state_dict["ranks"], self.trainer.world_size
        if "pending" not in ranks[0]:
            raise ValueError(
                "the rollouts of the checkpoint are of an older version of dirl, which are not taken up: export its "
                "model (`lightning run export --ckpt_path ...`) and start a new run from that"
            )
        share, before = data_rank(self.trainer), state_dict.get("tensor_size", 1)
        buffers, pending = [rank["buffer"] for rank in ranks[::before]], [rank["pending"] for rank in ranks]
        if (len(ranks), before) != (world_size, share.tensor_size):
            rank_zero_info(f"rollouts of {len(ranks)} processes are given out to {world_size}")
            ranks, buffers = redistribute(ranks, world_size), redistribute_buffers(buffers, share.size)
            self.lengths.load(state_dict["lengths"], {})
            self.lengths.settle(pending)
        else:
            self.lengths.load(state_dict["lengths"], pending[self.trainer.global_rank])
        own = ranks[self.trainer.global_rank]
        self.stream.load_state_dict(own["stream"])
        self.surplus = [trajectories(rows) for rows in own["surplus"]]
        self.buffer.load_state_dict(buffers[share.rank])
        if own["prefetched"] is not None:
            self.prefetch.put(collection_from_state(own["prefetched"]))

    def _check_size(self, available: int) -> None:
        if available < self.prompts_per_rollout:
            raise ValueError(
                f"data.prompts_per_rollout={self.prompts_per_rollout} exceeds the {available} prompts of "
                f"{self.task.origin('train')}: use fewer per rollout or more data"
            )

    def prompts_of(self, task: Task, split: Split, description: ModelDescription, name: str) -> list[Prompt]:
        """The prompts of any task, within the limits of this data; `counts[name]` says what became of its rows."""
        assert self.trainer is not None
        encode = PromptEncoder(
            description,
            self.max_prompt_tokens,
            self.overflow,
            self.chat_template_kwargs,
            self.on_bad_row,
            quiet=not bars_shown(self.trainer),
        )
        prompts, counts = task.prompts(split, encode), encode.counts
        self.counts[name] = counts
        if not prompts and split == "train":
            raise ValueError(f"{task.origin(split)}: no prompt to train on; give the task some, or name another")
        if counts.left_out and self.trainer.is_global_zero:
            log.warning("%s, max_prompt_tokens=%d: %s", task.origin(split), self.max_prompt_tokens, counts)
        return prompts


def check_rollout(prompts_per_rollout: int, steps_per_rollout: int, group_size: int) -> None:
    """Raise ValueError for numbers that make no rollout."""
    at_least(1, "data", prompts_per_rollout=prompts_per_rollout, steps_per_rollout=steps_per_rollout)
    if group_size < 2:
        raise ValueError(f"data.group_size={group_size}: advantages compare the responses of a group; use at least 2")
    if steps_per_rollout > prompts_per_rollout:
        raise ValueError(
            f"data.steps_per_rollout={steps_per_rollout} exceeds prompts_per_rollout={prompts_per_rollout}: "
            "every optimizer step needs a group"
        )


def say_if_unused(steps: int, limit: int | float, is_trial: bool) -> None:
    """Warn of optimizer steps of each rollout that `trainer.limit_train_batches` leaves out."""
    used = min(steps, limit if isinstance(limit, int) else int(steps * limit))
    if used < steps and not is_trial:
        rank_zero_warn(
            f"trainer.limit_train_batches={limit} trains {used} of the {steps} optimizer steps of each rollout, whose "
            "samples are all made: lower data.prompts_per_rollout, steps_per_rollout or passes in its place"
        )
