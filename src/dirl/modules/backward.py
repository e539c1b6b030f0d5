"""The backward passes of one optimizer step, micro-batch by micro-batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add

import lightning as L
from jaxtyping import Float
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dirl.batches import PackedBatch

Scalars = dict[str, Float[Tensor, ""]]
"""Losses or sums by name."""
LossFn = Callable[[PackedBatch, Float[Tensor, ""]], Scalars]
"""(micro-batch, divisor) -> its shares of the step's losses, by name; the gradient is that of their sum."""


def backward(
    module: L.LightningModule,
    micro_batches: list[PackedBatch],
    divisor: Float[Tensor, ""],
    loss_fns: Sequence[LossFn],
) -> list[Scalars]:
    """The losses of each; their gradients are summed and, after the last one, reduced over the ranks.

    Args:
        loss_fns: one after the other, each with a forward of its own that has been through its backward pass when the
            next one begins, so that the activations of one are alive at a time.
    """
    every = []
    for index, batch in enumerate(micro_batches):
        found: dict[str, Tensor] = {}
        with gradient_sync(module, index == len(micro_batches) - 1):
            for number, loss_fn in enumerate(loss_fns):
                losses = loss_fn(batch, divisor)
                total = reduce(add, losses.values())
                if number == 0:
                    module.manual_backward(total)  # gets DDP ready, once, for the gradients of all that is trained
                else:
                    total.backward()
                found |= {name: loss.detach() for name, loss in losses.items()}
        every.append(found)
    return every


def gradient_sync(module: L.LightningModule, last: bool) -> AbstractContextManager:
    """Under DDP, the gradients of all but the last micro-batch stay on their rank; FSDP2 reduces each."""
    if last or not isinstance(module.trainer.strategy, DDPStrategy):
        return nullcontext()
    return module.trainer.strategy.block_backward_sync()


def say_if_too_long(micro_batches: Sequence[PackedBatch], token_budget: int, told: int) -> int:
    """Warn of a row over the budget, if it is longer than any that was told of; returns the longest told of by now."""
    longest = max(map(len, micro_batches), default=0)
    if longest > max(token_budget, told):
        rank_zero_warn(
            f"a packed row has {longest} tokens, over data.token_budget={token_budget}: one view with all that it "
            "attends to does not fit in it; if memory runs out, shorten responses or conversations"
        )
        return longest
    return told
