"""The backward passes of one optimizer step, micro-batch by micro-batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dirl.batches import PackedBatch


def backward(
    module: L.LightningModule,
    micro_batches: list[PackedBatch],
    divisor: Tensor,
    loss_fn: Callable[[PackedBatch, Tensor], Tensor],
) -> list[Tensor]:
    """The loss of each; their gradients are summed and, after the last one, reduced over the ranks."""
    losses = []
    for index, batch in enumerate(micro_batches):
        with gradient_sync(module, index == len(micro_batches) - 1):
            loss = loss_fn(batch, divisor)
            module.manual_backward(loss)
        losses.append(loss.detach())
    return losses


def gradient_sync(module: L.LightningModule, last: bool) -> AbstractContextManager:
    """Under DDP, the gradients of all but the last micro-batch stay on their rank; FSDP2 reduces each."""
    if last or not isinstance(module.trainer.strategy, DDPStrategy):
        return nullcontext()
    return module.trainer.strategy.block_backward_sync()


def say_if_too_long(micro_batches: Sequence[PackedBatch], token_budget: int) -> None:
    """Warn of a row over the budget."""
    longest = max(map(len, micro_batches), default=0)
    if longest > token_budget:
        rank_zero_warn(
            f"a packed row has {longest} tokens, over data.token_budget={token_budget}: one view with all that it "
            "attends to does not fit in it; if memory runs out, shorten responses or conversations"
        )
