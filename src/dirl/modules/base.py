"""What both stages share: building (and sharding) the model, and the optimizer step over micro-batches.

One batch of a dataloader is one optimizer step (`StepBatch`), so accumulation cannot change the loss: the
divisor is summed over all ranks before the first micro-batch.
"""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dirl.attention.backend import Backend
from dirl.batches import PackedBatch, StepBatch
from dirl.checkpoints.files import KEY
from dirl.data_ranks import DataRank, data_mesh, data_rank, tensor_mesh
from dirl.models import BlockDiffusionLM, ModelDescription, ModelSource
from dirl.models.checkpoint_weights import FILES, LORA, packed
from dirl.models.lora import LoRAConfig, with_adapters
from dirl.models.model_files import model_files
from dirl.models.policy import ScoringPlan, scoring_plan
from dirl.modules.backward import LossFn, backward, say_if_too_long
from dirl.modules.building import Building, build_model, check_dtype, check_precision, keep_batches
from dirl.modules.guard import StepGuard
from dirl.modules.layers import Checkpointing, check_checkpointing
from dirl.modules.learners import Learner, as_list, clip_all, step_all, use_all_settings, zero_all
from dirl.modules.optimization import HostCopy, OptimizerConfig, offload_optimizer_state, restore_optimizer_state
from dirl.modules.weight_access import WeightAccess
from dirl.packing.rows import empty_batch
from dirl.types import DecodingParams, Likelihood, ModelSpec


class BlockDiffusionModule(WeightAccess):
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
        lora: adapters that learn in place of the weights, see `dirl.models.lora.LoRAConfig`; None: all weights learn.
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
        lora: LoRAConfig | None = None,
    ) -> None:
        super().__init__()
        if max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps={max_skipped_steps}: use 0 to end a run at the first, or more")
        if head_chunk is not None and head_chunk < 1:
            raise ValueError(f"head_chunk={head_chunk}: use a positive number of positions, or null")
        check_checkpointing(activation_checkpointing)
        self.automatic_optimization = False
        self.source, self.optimizer_config, self.lora = source, optimizer, lora
        self.attention, self.head_chunk = attention, head_chunk
        self.activation_checkpointing, self.compile_layers = activation_checkpointing, compile_layers
        self.offload_optimizer = offload_optimizer
        self.guard = StepGuard(max_skipped_steps)
        self.model: BlockDiffusionLM | None = None
        self._on_host: list[HostCopy] = []
        self._longest = 0
        self.run_config: dict[str, str] = {}
        """The config of the run, flat, for its checkpoints."""
        self._loaded_optimizer_settings: dict | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.description.spec

    def configure_model(self) -> None:
        """Build the model once; under a device mesh, shard it (FSDP2) layer by layer."""
        check_precision(self.trainer.precision)
        keep_batches(self.trainer.precision_plugin)
        if self.model is None:
            if self.lora is not None:
                with_adapters(self.lora, self.description, self.source)  # fails before weights are read
            self.model = self.build_model(self.source, self.description, lora=self.lora)
            check_dtype(next(p.dtype for p in self.model.parameters() if p.requires_grad or not self.mixed))

    @property
    def mixed(self) -> bool:
        """Whether compute is bf16 on fp32 weights."""
        return self.trainer.precision == "bf16-mixed"

    @property
    def offloaded(self) -> bool:
        """Whether sharded weights, their gradients and the optimizer's state stay in host memory."""
        return bool(getattr(self.trainer.strategy, "cpu_offload", False))

    @property
    def data_rank(self) -> DataRank:
        """Which share of a step this process has."""
        return data_rank(self.trainer)

    def build_model(self, source: ModelSource, description: ModelDescription, **options: Any) -> BlockDiffusionLM:
        """Build the model as `dirl.modules.building.build_model` does, with the options of this module."""
        building = Building(self.attention, self.head_chunk, self.activation_checkpointing, self.compile_layers)
        meshes = self.sharding_mesh, tensor_mesh(self.device_mesh)
        options["on_host"] = options.get("on_host", False) or self.offloaded
        return build_model(source, description, self.spec, building, *meshes, self.mixed, **options)

    @property
    def sharding_mesh(self) -> DeviceMesh | None:
        return None if self.device_mesh is None else data_mesh(self.device_mesh)

    def learners(self) -> list[Learner]:
        """What has an optimizer of its own, the policy first."""
        assert self.model is not None, "`configure_model` builds it"
        return [Learner("", [p for p in self.model.parameters() if p.requires_grad], self.optimizer_config)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches
        return [learner.configured(steps) for learner in self.learners()]  # type: ignore[return-value]

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

    def to_device(self, value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
        """The tensor on the module's device; it goes from the host through pinned memory, in the stream's order."""
        if self.device.type == "cuda" and not value.is_cuda:
            return value.pin_memory().to(self.device, non_blocking=True)
        return value.to(self.device)

    def before_rollout(self) -> None:
        """Leave the device's memory to an engine, as far as the config says; on all ranks, with `after_rollout`."""
        if self.offload_optimizer and not self.offloaded and not self._on_host:
            optimizers = as_list(self.optimizers(use_pl_optimizer=False))
            self._on_host = [copy for optimizer in optimizers for copy in offload_optimizer_state(optimizer)]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def after_rollout(self) -> None:
        """Undo `before_rollout`; to be called before a step or a checkpoint, also after a rollout that failed."""
        restore_optimizer_state(self._on_host)
        self._on_host = []

    def optimize(self, step: StepBatch, *loss_fns: LossFn) -> bool:
        """One optimizer step: backward over all micro-batches, clip, step, schedule.

        Args:
            loss_fns: shares of the step's losses, which add up over all ranks' micro-batches; see `backward`.

        Returns:
            False if no rank had anything to learn from, or a loss or a gradient is not finite: the weights are then
            left alone.

        Raises:
            NotFiniteError: too many such steps in a row, on all ranks.
        """
        started = time.perf_counter()
        optimizers, schedulers = as_list(self.optimizers()), as_list(self.lr_schedulers())
        divisor = self.sum_over_ranks(torch.tensor(step.loss_divisor, dtype=torch.float64))
        if divisor == 0:
            self.log("train/empty_steps", 1.0)
            return False
        # DDP and FSDP average gradients over the ranks; the loss is a sum over them.
        divisor = (divisor / self.data_rank.size).float()
        self._longest = say_if_too_long(step.micro_batches, step.token_budget, self._longest)
        # Without a row on any rank the gradient is 0, which an optimizer with momentum moves by all the same.
        micro_batches = self.equal_micro_batches(step) or [empty_batch(self.spec)]
        every = backward(self, micro_batches, divisor, loss_fns)
        norms = clip_all(self.learners())  # asked now: after a forward alone, FSDP2's root has other parameters
        names = list(every[0])
        sums = [sum((losses[name] for losses in every), torch.zeros_like(every[0][name])) for name in names]
        wrong = torch.stack([~norm.isfinite() for norm in norms]).any().to(sums[0])
        *totals, wrong = self.sum_over_ranks(torch.stack([*sums, wrong]))
        if wrong or not all(total.isfinite() for total in totals):
            zero_all(optimizers)
            self.update = "made"  # no more will come of this batch
            self._skip(step, every, totals, norms)
            return False
        self.guard.made()
        rates = [float(scheduler.get_last_lr()[0]) for scheduler in schedulers]  # of this step
        self.update = "begun"
        step_all(optimizers, schedulers)
        self.update = "made"
        self._log_learners(dict(zip(names, totals, strict=True)), norms, rates)
        self._log_step(step, micro_batches, time.perf_counter() - started)
        return True

    def _skip(self, step: StepBatch, every: list[dict[str, Tensor]], totals: list[Tensor], norms: list[Tensor]) -> None:
        """Skip a step that must not be made: the loss is the sum of all, the norm the first that is not finite."""
        norm = next((norm for norm in norms if not norm.isfinite()), norms[0])
        loss = float(torch.stack(totals).sum() / self.data_rank.size)
        losses = [torch.stack([*losses.values()]).sum() for losses in every]
        self.guard.skip(self.trainer, step, losses, loss, float(norm))
        self.log("train/skipped_steps", float(self.guard.in_all))

    def _log_learners(self, totals: Mapping[str, Tensor], norms: list[Tensor], rates: list[float]) -> None:
        """What each is told by its loss: losses over all ranks, gradients before they are clipped, learning rates."""
        shown = {f"train/{name}": total / self.data_rank.size for name, total in totals.items()}
        for learner, norm, rate in zip(self.learners(), norms, rates, strict=True):
            shown[f"train/{learner.named('grad_norm', '_')}"] = norm
            self.log(f"train/{learner.named('lr', '_')}", rate)
        self.log_dict(shown, prog_bar=True)

    def _log_step(self, step: StepBatch, rows: list[PackedBatch], seconds: float) -> None:
        """Log an optimizer step that was made; on all ranks, with all rows of this one."""
        packed = float(sum(len(batch) for batch in step.micro_batches))
        room = float(sum(max(len(batch), step.token_budget) for batch in rows))
        packed, room = self.sum_over_ranks(torch.tensor([packed, room], dtype=torch.float64)).float()
        self.log_dict(
            {
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

    def sum_over_ranks(self, value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
        """Of what each share of a step has; the processes of a tensor-parallel group have the same."""
        return self.trainer.strategy.reduce(value.to(self.device), group=self.data_rank.group, reduce_op="sum")

    def sum_over_processes(self, value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
        """Of what each process has made by itself, as of its rollouts."""
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")

    def largest_over_ranks(self, value: int) -> int:
        return int(self.trainer.strategy.reduce(torch.tensor(value, device=self.device), reduce_op="max"))

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
            LORA: None if self.lora is None else self.lora.settings(),
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
        optimizers = as_list(self.optimizers(use_pl_optimizer=False))
        use_all_settings(self.learners(), optimizers, as_list(self.lr_schedulers()))
        changed = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
        rank_zero_info(f"the optimizer goes on with other settings than the checkpoint's: {', '.join(changed)}")

    def _optimizer_settings(self) -> dict:
        learners = self.learners()
        cosine = any(learner.config.schedule == "cosine" for learner in learners)
        steps = self.trainer.estimated_stepping_batches if cosine else None
        return {name: value for learner in learners for name, value in learner.settings(steps).items()}
