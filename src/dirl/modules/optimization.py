"""AdamW with warm-up and a constant or cosine schedule, and its state's stay on the host while an engine works."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, UntypedStorage
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


@dataclass(frozen=True)
class OptimizerConfig:
    """Options of the optimizer.

    Args:
        lr: peak learning rate.
        schedule: after the warm-up, `constant`, or `cosine` down to 0 at the last optimizer step.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        max_grad_norm: gradients are scaled down to this global norm; None: measured, not scaled.
    """

    lr: float = 1e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, remedy: str) -> None:
            if not ok:
                raise ValueError(f"optimizer.{name}={getattr(self, name)!r}: {remedy}")

        check(0 < self.lr < math.inf, "lr", "use a positive number")
        check(0 < self.eps < math.inf, "eps", "use a positive number")
        check(all(0 <= beta < 1 for beta in self.betas), "betas", "use two numbers in [0, 1)")
        check(0 <= self.weight_decay < math.inf, "weight_decay", "use a number that is not negative")
        check(self.schedule in ("constant", "cosine"), "schedule", "use constant or cosine")
        check(self.warmup_steps >= 0, "warmup_steps", "use a number that is not negative")
        norm = self.max_grad_norm
        check(norm is None or 0 < norm < math.inf, "max_grad_norm", "use a positive number or null")


def build_optimizer(
    parameters: list[Parameter], config: OptimizerConfig, total_steps: int | float
) -> tuple[AdamW, LRScheduler]:
    """The optimizer and its schedule per optimizer step; `total_steps` may be infinite for `constant`.

    It warns of a warm-up that is longer than the run.
    """
    if config.schedule == "cosine" and math.isinf(total_steps):
        raise ValueError("optimizer.schedule=cosine needs an end: set trainer.max_steps or trainer.max_epochs")
    if config.warmup_steps >= total_steps:
        rank_zero_warn(
            f"optimizer.warmup_steps={config.warmup_steps}: the run has {total_steps} optimizer steps and ends before "
            f"the learning rate is at lr={config.lr:g}; lower it"
        )
    sharded = any(isinstance(p, DTensor) for p in parameters)
    on_cpu = all(p.device.type == "cpu" for p in parameters)
    optimizer = AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=None if sharded and on_cpu else True,
    )
    name = "cosine" if config.schedule == "cosine" else "constant_with_warmup"
    steps = None if math.isinf(total_steps) else int(total_steps)
    return optimizer, get_scheduler(name, optimizer, config.warmup_steps, steps)


def use_settings(optimizer: AdamW, scheduler: LRScheduler, config: OptimizerConfig) -> None:
    """Give the optimizer of a resumed run other settings than the checkpoint's; its moments and steps stay."""
    scheduler.base_lrs = [config.lr] * len(optimizer.param_groups)
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group |= {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
        group |= {"initial_lr": config.lr, "lr": config.lr * factor(scheduler.last_epoch)}
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def clip_gradients(parameters: list[Parameter], max_norm: float | None) -> Float[Tensor, ""]:
    """Scale the gradients to at most `max_norm`; returns the global norm from before, over all shards."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@dataclass(frozen=True)
class HostCopy:
    """Bytes of a tensor whose own memory has been given back."""

    storage: UntypedStorage
    copy: UInt8[Tensor, " bytes"]


def offload_optimizer_state(optimizer: Optimizer) -> list[HostCopy]:
    """Move the optimizer's moments to (pinned) host memory; their device memory goes back to the allocator.

    The tensors of `optimizer.state`, sharded or not, stay the same objects, without contents until
    `restore_optimizer_state`: no step and no checkpoint may happen in between. Pinned memory comes in powers of two.
    """
    storages: dict[int, UntypedStorage] = {}
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value) and value.dim():  # step counters are no load
                local = value.to_local() if isinstance(value, DTensor) else value
                storage = local.untyped_storage()
                assert storage.nbytes() or not local.numel(), "the optimizer's state is on the host already"
                # A shard may be empty; what a run on a CPU was resumed with lies in its checkpoint's file, on the host.
                if storage.nbytes() and storage.resizable():
                    storages[storage.data_ptr()] = storage
    copies = [HostCopy(storage, _host_copy(storage)) for storage in storages.values()]
    _wait(copies)
    for each in copies:
        each.storage.resize_(0)
    return copies


def restore_optimizer_state(copies: list[HostCopy]) -> None:
    """Bring back to the device what `offload_optimizer_state` took away."""
    for each in copies:
        each.storage.resize_(each.copy.numel())
        _bytes(each.storage).copy_(each.copy, non_blocking=True)
    _wait(copies)


def _host_copy(storage: UntypedStorage) -> Tensor:
    on_gpu = storage.device.type == "cuda"
    copy = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu", pin_memory=on_gpu)
    return copy.copy_(_bytes(storage), non_blocking=on_gpu)


def _bytes(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait(copies: list[HostCopy]) -> None:
    if any(each.storage.device.type == "cuda" for each in copies):
        torch.cuda.synchronize()
