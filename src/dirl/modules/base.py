"""What both stages share: building (and sharding) the model, and the optimizer step over micro-batches.

One batch of a dataloader is one optimizer step (`StepBatch`), so accumulation cannot change the loss: the
divisor is summed over all ranks before the first micro-batch.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from dirl.attention.backend import Backend
from dirl.batches import PackedBatch, StepBatch
from dirl.checkpoints.files import KEY
from dirl.checkpoints.resumable import Resumable
from dirl.models import BlockDiffusionLM, ModelDescription, ModelSource
from dirl.models.checkpoint_weights import FILES, packed
from dirl.models.families.weights import Named, empty_backbone, weight_shapes
from dirl.models.model_files import model_files
from dirl.models.policy import ScoringPlan, scoring_plan
from dirl.modules.backward import backward, say_if_too_long
from dirl.modules.building import Building, build_model, check_dtype, check_precision
from dirl.modules.guard import StepGuard
from dirl.modules.layers import Checkpointing, check_checkpointing
from dirl.modules.optimization import (
    HostCopy,
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    offload_optimizer_state,
    restore_optimizer_state,
    use_settings,
)
from dirl.modules.sharding import reshard
from dirl.packing.rows import empty_batch
from dirl.types import DecodingParams, Likelihood, ModelSpec


class BlockDiffusionModule(Resumable):
    """Wraps the dLLM for training.

    Args:
        source: where the model comes from.
        optimizer: AdamW and its schedule.
        attention: auto (FlexAttention on GPU), flex, segments or dense.
        head_chunk: scored positions that meet the vocabulary at a time; None: what 2 GiB hold.
        activation_checkpointing: which layers are computed again in the backward pass instead of keeping their
            activations: `none`, every one (`full`) or every second one (`selective`).
        compile_layers: torch.compile of each decoder layer.
        offload_optimizer: the optimizer's state waits in host memory while an engine makes a rollout.
        max_skipped_steps: optimizer steps in a row that may be skipped because loss or gradient is not finite; one more
            ends the run. Weights and schedule stay, `train/skipped_steps` counts, the log folder keeps the batch.
    """

    makes_rollouts: ClassVar[bool] = False
    """Whether it learns from what an engine samples, so that a run needs `engine` and `rollout`."""

    def __init__(
        self,
        source: ModelSource,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        attention: Backend = "auto",
        head_chunk: int | None = None,
        activation_checkpointing: Checkpointing = "none",
        compile_layers: bool = False,
        offload_optimizer: bool = False,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__()
        if max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps={max_skipped_steps}: use 0 to end a run at the first, or more")
        if head_chunk is not None and head_chunk < 1:
            raise ValueError(f"head_chunk={head_chunk}: use a positive number of positions, or null")
        check_checkpointing(activation_checkpointing)
        self.automatic_optimization = False
        self.source, self.optimizer_config = source, optimizer
        self.attention, self.head_chunk = attention, head_chunk
        self.activation_checkpointing, self.compile_layers = activation_checkpointing, compile_layers
        self.offload_optimizer = offload_optimizer
        self.guard = StepGuard(max_skipped_steps)
        self.model: BlockDiffusionLM | None = None
        self._on_host: list[HostCopy] = []
        self.run_config: dict[str, str] = {}
        """The config of the run, flat, for its checkpoints."""
        self._loaded_optimizer_settings: dict | None = None

    @cached_property
    def description(self) -> ModelDescription:
        return self.source.describe()

    @property
    def spec(self) -> ModelSpec:
        return self.description.spec

    def configure_model(self) -> None:
        """Build the model once; under a device mesh, shard it (FSDP2) layer by layer."""
        check_precision(self.trainer.precision)
        if self.model is None:
            self.model = self.build_model(self.source, self.description)
            check_dtype(next(self.model.parameters()).dtype)

    @property
    def mixed(self) -> bool:
        """Whether compute is bf16 on fp32 weights."""
        return self.trainer.precision == "bf16-mixed"

    def build_model(
        self, source: ModelSource, description: ModelDescription, frozen: bool = False, on_host: bool = False
    ) -> BlockDiffusionLM:
        """See `dirl.modules.building.build_model`, of which this has the options."""
        building = Building(self.attention, self.head_chunk, self.activation_checkpointing, self.compile_layers)
        return build_model(
            source, description, self.spec, building, self.sharding_mesh, self.mixed, frozen=frozen, on_host=on_host
        )

    @property
    def sharding_mesh(self) -> DeviceMesh | None:
        return None if self.device_mesh is None else self.device_mesh["data_parallel"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches
        optimizer, scheduler = build_optimizer(list(self.model.parameters()), self.optimizer_config, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """A step stays on the host: `place` moves one micro-batch at a time, when what it needs has been planned."""
        if isinstance(batch, StepBatch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def place(
        self, batch: PackedBatch, decoding: DecodingParams, likelihood: Likelihood = "tokens"
    ) -> tuple[PackedBatch, ScoringPlan]:
        """The micro-batch and where the head looks in it, on the module's device; from the host without waiting."""
        plan = scoring_plan(batch, self.model.spec, decoding, likelihood)
        return batch.map(self.to_device), plan.map(self.to_device)

    def to_device(self, value: Tensor) -> Tensor:
        """The tensor on the module's device; it goes from the host through pinned memory, in the stream's order."""
        if self.device.type == "cuda" and not value.is_cuda:
            return value.pin_memory().to(self.device, non_blocking=True)
        return value.to(self.device)

    def before_rollout(self) -> None:
        """Leave the device's memory to an engine, as far as the config says; on all ranks, with `after_rollout`."""
        if self.offload_optimizer and not self._on_host:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert not isinstance(optimizer, list), "there is one"
            self._on_host = offload_optimizer_state(optimizer)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def after_rollout(self) -> None:
        """Undo `before_rollout`; to be called before a step or a checkpoint, also after a rollout that failed."""
        restore_optimizer_state(self._on_host)
        self._on_host = []

    def optimize(self, step: StepBatch, loss_fn: Callable[[PackedBatch, Tensor], Tensor]) -> bool:
        """One optimizer step: backward over all micro-batches, clip, step, schedule.

        Args:
            loss_fn: (micro-batch, divisor) -> its share of the step's loss; the shares of all ranks' micro-batches
                add up to the loss.

        Returns:
            False if no rank had anything to learn from, or the loss or its gradient is not finite: the weights are then
            left alone.

        Raises:
            NotFiniteError: too many such steps in a row, on all ranks.
        """
        started = time.perf_counter()
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        divisor = self.sum_over_ranks(torch.tensor(step.loss_divisor, dtype=torch.float64))
        if divisor == 0:
            self.log("train/empty_steps", 1.0)
            return False
        # DDP and FSDP average gradients over the ranks; the loss is a sum over them.
        divisor = (divisor / self.trainer.world_size).float()
        say_if_too_long(step.micro_batches, step.token_budget)
        micro_batches = self.equal_micro_batches(step)
        losses = backward(self, micro_batches, divisor, loss_fn)
        norm = clip_gradients(list(self.model.parameters()), self.optimizer_config.max_grad_norm)
        loss = sum(losses, torch.zeros_like(losses[0]))
        total, wrong = self.sum_over_ranks(torch.stack([loss, (~norm.isfinite()).to(loss)]))
        if wrong or not total.isfinite():
            optimizer.zero_grad()
            self.update = "made"  # no more will come of this batch
            self.guard.skip(self.trainer, step, losses, float(total / self.trainer.world_size), float(norm))
            self.log("train/skipped_steps", float(self.guard.in_all))
            return False
        self.guard.made()
        lr = float(scheduler.get_last_lr()[0])  # of this step
        self.update = "begun"
        optimizer.step()
        optimizer.zero_grad()  # now: gradients would lie in memory through the next rollout
        scheduler.step()
        self.update = "made"
        self._log_step(step, micro_batches, total, norm, lr, time.perf_counter() - started)
        return True

    def _log_step(
        self, step: StepBatch, rows: list[PackedBatch], total: Tensor, norm: Tensor, lr: float, seconds: float
    ) -> None:
        """Of an optimizer step that was made; on all ranks, with all rows of this one."""
        packed = float(sum(len(batch) for batch in step.micro_batches))
        room = float(sum(max(len(batch), step.token_budget) for batch in rows))
        packed, room = self.sum_over_ranks(torch.tensor([packed, room], dtype=torch.float64)).float()
        shown = {"train/loss": total / self.trainer.world_size, "train/grad_norm": norm}
        self.log_dict(shown, prog_bar=True)
        self.log_dict(
            {
                "train/lr": lr,
                "train/packed_tokens": packed,
                "train/skipped_steps": float(self.guard.in_all),
                "data/fill_rate": packed / room,
                "time/step_s": seconds,
            }
        )

    def equal_micro_batches(self, step: StepBatch) -> list[PackedBatch]:
        """Filled up with empty ones to the largest number on any rank: sharded forwards are collectives."""
        own = len(step.micro_batches)
        most = self.largest_over_ranks(own)
        return step.micro_batches + [empty_batch(self.spec)] * (most - own)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")

    def largest_over_ranks(self, value: int) -> int:
        return int(self.trainer.strategy.reduce(torch.tensor(value, device=self.device), reduce_op="max"))

    def full_weights(self, dtype: torch.dtype | None = None) -> Iterator[Named]:
        """`ModelFamily.weights` of the backbone, cast to the dtype before they are gathered; call it on all ranks."""
        assert self.model is not None, "`configure_model` builds it"
        reshard(self.model)
        yield from self.description.family.weights(self.model.backbone, dtype)

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Of `full_weights`, by name."""
        return weight_shapes(self.description.family, self.model.backbone)

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights in a checkpoint, by name, without building the model."""
        backbone = empty_backbone(self.description.family, self.description.config, torch.float32)
        return {f"model.backbone.{name}": tuple(value.shape) for name, value in backbone.state_dict().items()}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["block_size"] = self.spec.block_size
        checkpoint[KEY] |= {
            "module": type(self).__name__,
            "block_size": self.spec.block_size,
            "optimizer": self._optimizer_settings(),
            "config": self.run_config,
            FILES: self._model_files,
            "skipped": self.guard.state(),
        }

    @cached_property
    def _model_files(self) -> dict[str, str]:
        """All that an export of this checkpoint needs beside its weights."""
        return packed(model_files(self.description.config, self.description.tokenizer, self.description.carried))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self._loaded_optimizer_settings = checkpoint[KEY]["optimizer"]
        self.guard.load(checkpoint[KEY]["skipped"])

    def on_train_start(self) -> None:
        """What the command line says of the optimizer acts in a resumed run too; Lightning has put back the old."""
        super().on_train_start()
        before, now = self._loaded_optimizer_settings, self._optimizer_settings()
        if before is None or before == now:
            return
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, AdamW) and isinstance(scheduler, LRScheduler), "those of `build_optimizer`"
        use_settings(optimizer, scheduler, self.optimizer_config)
        changed = [f"{name} {before[name]} -> {value}" for name, value in now.items() if before[name] != value]
        rank_zero_info(f"the optimizer goes on with other settings than the checkpoint's: {', '.join(changed)}")

    def _optimizer_settings(self) -> dict:
        settings = dataclasses.asdict(self.optimizer_config) | {"total_steps": None}
        if self.optimizer_config.schedule == "cosine":
            settings["total_steps"] = self.trainer.estimated_stepping_batches
        return settings
