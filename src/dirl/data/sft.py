"""The SFT DataModule: conversations to noised, packed optimizer steps."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import lightning as L
import torch.multiprocessing
from lightning.pytorch.utilities import rank_zero_warn

from dirl.checkpoints.settings import check_same
from dirl.data.sft_steps import SFTSteps
from dirl.data.step_loader import StepLoader, check_sampler, steps_done
from dirl.data_ranks import data_rank
from dirl.diffusion.block_schedule import BlockSchedule
from dirl.diffusion.noise import NoiseConfig
from dirl.models import ModelDescription
from dirl.packing.pieces import Encoded
from dirl.progress_bar import bars_shown
from dirl.ranges import at_least
from dirl.reading.chat import FitCounts
from dirl.reading.encoding import ConversationEncoder, check_on_bad_row, encode_rows, keep_encoded, load_encoded
from dirl.reading.mapped import examples_digest
from dirl.reading.rows import ListedRows, OnBadRow
from dirl.reading.schemas import RowSchema
from dirl.seeds import run_seed
from dirl.tasks import Split, Task
from dirl.tasks.given import check_given_once, said_of_files
from dirl.types import ModelSpec

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "validation"}
"""Names of the splits in folders and on the hub."""


class SFTDataModule(L.LightningDataModule):
    """Conversations from JSON, JSONL, CSV, Parquet or a hub dataset, or those of a task.

    Args:
        train: file, folder, list of them, or hub name. None: a task is given.
        val: the same for validation; None: no validation.
        max_tokens: longest conversation.
        overflow: what happens to longer ones: drop, cut, or error.
        global_batch_size: conversations per optimizer step, over all ranks.
        token_budget: packed tokens (clean and noised) per micro-batch.
        val_token_budget: the same in validation; None: as in training.
        turns: train on all assistant messages or only on the last.
        noise: how blocks are noised.
        chat_template_kwargs: passed to the chat template.
        num_workers: processes that noise and pack ahead of the training.
        encode_workers: processes that tokenise, where the result is not in the datasets cache yet; None: one for every
            thousand conversations, as far as there are cores, at most 16.
        seed: of the order and of the noise; None: that of `seed_everything`.
        row_schema: how a row holds its conversation: `messages` (role, content; also tool_calls, and `tools` beside),
            `sharegpt` (`conversations` with from, value), `prompt_completion`, `alpaca` (instruction, input, output);
            auto: by its columns.
        column: with the conversation, where it has another name.
        on_bad_row: a row that cannot be used is an error, or is skipped and counted.
        task: what is learned. In configs it has a key of its own, `task`.
        block_schedule: block sizes that training goes through, see `dirl.diffusion.block_schedule.BlockSchedule`; None:
            the model's from the first step on. Validation always has the model's.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        max_tokens: int = 8192,
        overflow: Literal["drop", "cut", "error"] = "drop",
        global_batch_size: int = 64,
        token_budget: int = 16384,
        val_token_budget: int | None = None,
        turns: Literal["all", "last"] = "all",
        noise: NoiseConfig = NoiseConfig(),  # noqa: B008 - frozen
        chat_template_kwargs: dict | None = None,
        num_workers: int = 0,
        encode_workers: int | None = None,
        seed: int | None = None,
        row_schema: RowSchema = "auto",
        column: str | None = None,
        on_bad_row: OnBadRow = "error",
        task: Task | None = None,
        block_schedule: BlockSchedule | None = None,
    ) -> None:
        super().__init__()
        check_on_bad_row(on_bad_row)
        if global_batch_size < 1:
            raise ValueError(f"data.global_batch_size={global_batch_size}: use at least 1")
        if token_budget < 1:
            raise ValueError(f"data.token_budget={token_budget}: use at least the longest packed conversation")
        at_least(1, "data", max_tokens=max_tokens, val_token_budget=val_token_budget)
        at_least(0, "data", num_workers=num_workers)
        if encode_workers is not None and encode_workers < 1:
            raise ValueError(f"data.encode_workers={encode_workers}: use at least 1, or null")
        self.max_tokens, self.overflow = max_tokens, overflow
        self.global_batch_size, self.token_budget = global_batch_size, token_budget
        self.val_token_budget = val_token_budget or token_budget
        self.turns, self.noise, self.chat_template_kwargs = turns, noise, chat_template_kwargs
        self.num_workers, self.encode_workers = num_workers, encode_workers
        self.seed = run_seed(seed, "data.seed")
        self.row_schema, self.column, self.on_bad_row = row_schema, column, on_bad_row
        self.block_schedule = block_schedule
        self.sources: dict[Split, str | list[str] | None] = {"train": train, "val": val}
        self.task: Task | None = None
        if task is not None or train is not None:
            self.take(task)
        self.examples: dict[str, Sequence[Encoded]] = {}
        self.counts: dict[str, FitCounts] = {}

    def take(self, task: Task | None) -> None:
        """Learn this task, or, with None, the files of the own options; ValueError for both or neither."""
        check_given_once(task, self.sources)
        if unused := said_of_files(task, {"row_schema": (self.row_schema, "auto"), "column": (self.column, None)}):
            rank_zero_warn(unused)
        self.task = task

    def prepare_data(self) -> None:
        """The first process of each host encodes for all of them; the others wait."""
        assert self.trainer is not None
        check_sampler(self.trainer)
        if self.block_schedule is not None and self.trainer.state.fn == "fit":
            self.block_schedule.check(self._spec.block_size, None)  # before anything is encoded
        quiet = not bars_shown(self.trainer)
        for split in self._wanted(self.trainer.state.fn):
            if (source := self.sources[split]) is not None:
                keep_encoded(source, SPLITS[split], self._encoder(), self.encode_workers, quiet)

    def setup(self, stage: str) -> None:
        check_sampler(self.trainer)
        if self.task is None:
            self.take(None)
        for split in self._wanted(stage):
            examples = self._load(split)
            if examples is not None:
                self.examples[split] = examples
        if stage == "fit" and self.block_schedule is not None:
            self.block_schedule.check(self._spec.block_size, self._steps_of_run())
        if stage == "validate" and "val" not in self.examples:
            raise ValueError(
                f"{self._origin('val')}: no conversations, and validate needs some; name them, e.g. --data.val "
                "my_val.jsonl, or take a task that has some"
            )

    def train_dataloader(self) -> StepLoader:
        steps = self._steps(self.examples["train"], self.token_budget, shuffle=True)
        if not len(steps):
            raise ValueError(
                f"data.global_batch_size={self.global_batch_size} is larger than the {len(self.examples['train'])} "
                f"conversations of {self._origin('train')}: use a smaller batch or more data"
            )
        if self.num_workers:  # a file descriptor for each of a step's many tensors would run into the system's limit
            torch.multiprocessing.set_sharing_strategy("file_system")
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return StepLoader(steps, len(steps), steps_done(self.trainer), self.num_workers, pin_memory=on_gpu)

    def state_dict(self) -> dict[str, Any]:
        return self.settings()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "train" in self.examples:
            check_same("data", state_dict, self.settings())

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have like the one before: the order of the conversations, noise, size of a step."""
        noise = dataclasses.asdict(self.noise)
        values = {"global_batch_size": self.global_batch_size, "seed": self.seed, "noise": noise}
        values["block_schedule"] = None if self.block_schedule is None else dataclasses.asdict(self.block_schedule)
        return values | {"train": self._train_digest}

    @cached_property
    def _train_digest(self) -> str:
        return examples_digest(self.examples["train"])

    def val_dataloader(self) -> StepLoader | list:
        if "val" not in self.examples:
            return []
        steps = self._steps(self.examples["val"], self.val_token_budget, shuffle=False)
        return StepLoader(steps, len(steps), num_workers=self.num_workers)

    def _steps(self, examples: Sequence[Encoded], budget: int, shuffle: bool) -> "SFTSteps":
        trainer = self.trainer
        assert trainer is not None
        size = self.global_batch_size
        share = data_rank(trainer)
        return SFTSteps(
            examples,
            self._spec,
            self.noise,
            size,
            budget,
            shuffle,
            self.seed,
            share.rank,
            share.size,
            *((self.block_schedule, self._steps_of_epoch()) if shuffle and self.block_schedule else ()),
        )

    @property
    def _spec(self) -> ModelSpec:
        spec = self.trainer.lightning_module.spec
        assert isinstance(spec, ModelSpec)
        return spec

    def _steps_of_epoch(self) -> int:
        """How many steps of an epoch the trainer takes."""
        steps, limit = len(self.examples["train"]) // self.global_batch_size, self.trainer.limit_train_batches
        return min(steps, limit if isinstance(limit, int) else int(steps * limit))

    def _steps_of_run(self) -> int | None:
        """None: without end, or a few to see that it runs."""
        trainer = self.trainer
        if trainer.fast_dev_run:
            return None
        ends = [trainer.max_steps] if trainer.max_steps != -1 else []
        ends += [trainer.max_epochs * self._steps_of_epoch()] if trainer.max_epochs not in (None, -1) else []
        return min(ends, default=None)

    def _wanted(self, stage: str | None) -> list[Split]:
        """What the stage needs and is not loaded yet."""
        splits: tuple[Split, ...] = ("train", "val") if stage == "fit" else ("val",)
        return [split for split in splits if split not in self.examples]

    def _encoder(self) -> ConversationEncoder:
        description = self.trainer.lightning_module.description
        assert isinstance(description, ModelDescription)
        spec, limits = description.spec, (self.max_tokens, self.overflow)
        return ConversationEncoder(
            description.tokenizer,
            spec.stop_token_ids,
            *limits,
            self.turns,
            self.chat_template_kwargs,
            spec.banned,
            *(("messages", None) if self.task is not None else (self.row_schema, self.column)),
            self.on_bad_row,
        )

    def _load(self, split: Split) -> Sequence[Encoded] | None:
        """The conversations of a split; None: it has none, and need not have."""
        assert self.trainer is not None
        found = self._encoded(split, quiet=not bars_shown(self.trainer))
        if found is None:
            return None
        examples, counts = found
        self.counts[split] = counts
        if counts.left_out and self.trainer.is_global_zero:
            log.warning("%s, max_tokens=%d: %s", self._origin(split), self.max_tokens, counts)
        if not examples:
            raise ValueError(
                f"{self._origin(split)}: no conversation is left ({counts}); raise data.max_tokens, or mend the data"
            )
        return examples

    def _encoded(self, split: Split, quiet: bool) -> tuple[Sequence[Encoded], FitCounts] | None:
        if self.task is None:
            source = self.sources[split]
            return None if source is None else load_encoded(source, SPLITS[split], self._encoder(), quiet)
        rows = self.task.conversations(split)
        if not rows and split == "train":
            raise ValueError(
                f"{self._origin(split)}: it has no conversations, which SFT learns from; take a task that has, or name "
                "files by data.train"
            )
        return (
            encode_rows(ListedRows(rows, self._origin(split)), SPLITS[split], self._encoder(), quiet) if rows else None
        )

    def _origin(self, split: Split) -> str:
        """Where the conversations are from, for messages."""
        return f"data.{split}={self.sources[split]!r}" if self.task is None else self.task.origin(split)
