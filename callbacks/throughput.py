"""How fast a run is and where its time goes: tokens per second, utilisation, share of each phase, peak memory."""

import resource
import time
from dataclasses import dataclass, replace
from typing import final

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from dirl.batches import StepBatch
from dirl.models import ModelShape
from dirl.models.policy import scoring_plan
from dirl.models.value import ValueModel
from dirl.modules import RLModule
from dirl.modules.base import BlockDiffusionModule
from dirl.planning import Work, layout_work, training_flops
from dirl.planning.peaks import peak_tflops as known_peak
from dirl.ranges import positive

PHASES = ("generate", "reward", "push", "score")
"""The phases of a rollout, as `dirl.callbacks.Rollout` logs their seconds (`time/NAME_s`)."""
WAITED = "time/rollout_s"
"""What the trainer waited for groups, where they are generated while it works."""


@final
class Throughput(L.Callback):
    """Logs `throughput/...` after every optimizer step, `share/...` and `memory/...` after every epoch.

    Every run of `dirl fit` has one; in configs its options have the key `throughput`.

    Tokens are real: packed ones (clean and noised) and those of responses; a row that only keeps ranks equal has none.
    Clean tokens that several rows repeat are packed, and computed, in each; response tokens are counted once.
    Utilisation is model FLOPs over peak: forward and backward without what is recomputed, attention by visible pairs,
    the head by scored positions. A step's time runs until the device has finished it (the host waits for it: a GPU
    works on several streams, which an event on one of them would not cover, and one wait per optimizer step costs
    nothing beside it). Tokens are summed over the ranks, of times the longest counts.

    Args:
        peak_tflops: dense bf16 peak of one device, TFLOP/s; None: by the name of the GPU. Without one, as on a CPU,
            utilisation is not logged.
        prog_bar: show packed tokens per second and utilisation in the progress bar.
    """

    def __init__(self, peak_tflops: float | None = None, prog_bar: bool = True) -> None:
        positive("throughput", peak_tflops=peak_tflops)
        self.peak_tflops, self.prog_bar = peak_tflops, prog_bar
        self.step: _StepCount | None = None
        self.step_started = self.epoch_started = 0.0
        self.epoch = _EpochCount()

    def on_train_start(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        self.shape = pl_module.description.family.shape(pl_module.description.config)
        self.value_shape = _value_shape(pl_module)
        self.peak = self.peak_tflops if self.peak_tflops is not None else _peak_of(pl_module.device)
        self._begin_epoch(pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: BlockDiffusionModule, batch: StepBatch, batch_idx: int
    ) -> None:
        self.step = count_step(batch, pl_module)
        _wait(pl_module.device)
        self.step_started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, *args: object) -> None:
        _wait(pl_module.device)
        seconds = _longest(trainer, pl_module, time.perf_counter() - self.step_started)
        flops = training_flops(self.shape, self.step.work, "none", _adapters(pl_module)).model
        if self.value_shape is not None:
            flops += training_flops(self.value_shape, replace(self.step.work, scored=0.0), "none").model
        own = torch.tensor([self.step.work.tokens, self.step.response_tokens, flops], dtype=torch.float64)
        packed, responses, total = pl_module.sum_over_ranks(own).tolist()
        self.epoch = self.epoch.plus(seconds, responses)
        if not packed:  # a step without anything to learn from
            return
        per_device = total / seconds / trainer.world_size / 1e12
        values = {
            "throughput/step_s": seconds,
            "throughput/packed_tokens_per_s": packed / seconds,
            "throughput/response_tokens_per_s": responses / seconds,
            "throughput/tflops_per_device": per_device,
        }
        if self.peak is not None:
            values["throughput/mfu"] = per_device / self.peak
        shown = {"throughput/packed_tokens_per_s", "throughput/mfu"} if self.prog_bar else set()
        for name, value in values.items():
            pl_module.log(name, value, prog_bar=name in shown, on_step=True, on_epoch=False, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        wall = _longest(trainer, pl_module, time.perf_counter() - self.epoch_started)
        seconds = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("time/")}
        shares = phase_shares(seconds, self.epoch.step_s, wall)
        values = {f"share/{name}": share for name, share in shares.items()}
        values["throughput/epoch_response_tokens_per_s"] = self.epoch.response_tokens / wall
        for name, size in peak_memory(pl_module.device).items():
            values[f"memory/{name}"] = _longest(trainer, pl_module, size)
        for name, value in values.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)
        self._begin_epoch(pl_module.device)

    def _begin_epoch(self, device: torch.device) -> None:
        self.epoch, self.epoch_started = _EpochCount(), time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True)
class _StepCount:
    work: Work
    response_tokens: float


@dataclass(frozen=True)
class _EpochCount:
    step_s: float = 0.0
    response_tokens: float = 0.0

    def plus(self, seconds: float, responses: float) -> "_EpochCount":
        return _EpochCount(self.step_s + seconds, self.response_tokens + responses)


def count_step(step: StepBatch, module: BlockDiffusionModule) -> _StepCount:
    """The work of this rank's rows, and the response tokens that it learns from."""
    work = sum((layout_work(row) for row in step.micro_batches), Work())
    if isinstance(module, RLModule) and module.objective.likelihood == "trajectory":
        plans = (scoring_plan(row, module.spec, module.decoding, "trajectory") for row in step.micro_batches)
        work = replace(work, scored=work.scored + sum(len(plan.rejected) for plan in plans))
    return _StepCount(work, step.response_tokens)


def _value_shape(module: BlockDiffusionModule) -> ModelShape | None:
    """The shape of a value model with a backbone of its own, which sees the same rows."""
    if not isinstance(module, RLModule) or not isinstance(module.value_model, ValueModel):
        return None
    return module.value_description.family.shape(module.value_description.config)


def phase_shares(seconds: dict[str, float], step_s: float, wall: float) -> dict[str, float]:
    """Parts of an epoch's wall time: of the rollout's phases, of the optimizer steps, and of all else.

    Of groups that were generated while the trainer worked, only the wait for them counts.

    Args:
        seconds: `time/NAME_s` as logged in the epoch.
    """
    found = {name: seconds[f"time/{name}_s"] for name in PHASES if f"time/{name}_s" in seconds}
    making = found.get("generate", 0.0) + found.get("reward", 0.0)
    if making and seconds.get(WAITED, making) < making:
        for name in ("generate", "reward"):
            found[name] = found.get(name, 0.0) * seconds[WAITED] / making
    found["train_step"] = step_s
    found["other"] = max(0.0, wall - sum(found.values()))
    return {name: value / wall for name, value in found.items()}


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB. On a GPU since the epoch began, tensors and what the allocator holds; elsewhere of the whole process."""
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"peak_gib": allocated / 2**30, "reserved_gib": reserved / 2**30}
    return {"process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _peak_of(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = known_peak(name)
    if peak is None:
        rank_zero_warn(f"no peak rate is known for {name!r}: utilisation is not logged; set throughput.peak_tflops")
    return peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _longest(trainer: L.Trainer, module: BlockDiffusionModule, value: float) -> float:
    """The largest value that any rank has."""
    own = torch.tensor(value, dtype=torch.float64, device=module.device)
    return float(trainer.strategy.reduce(own, reduce_op="max"))


def _adapters(module: BlockDiffusionModule) -> int | None:
    """Their parameters, on all ranks together; None: all weights learn."""
    assert module.model is not None, "it trains"
    return None if module.lora is None else sum(p.numel() for p in module.model.parameters() if p.requires_grad)
