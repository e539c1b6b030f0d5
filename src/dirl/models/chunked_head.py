"""Rows of hidden states through the head in chunks, with a backward pass of our own.

Precision: the operands of the matrix products have the compute dtype (that of autocast, else the weight's), the
logits, all that is made of them, and the sum of the weight's gradient are fp32 (float64 where the weight is).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from dirl.diffusion.sampling import ban_
from dirl.spans import Spans

CHUNK_BYTES = 2 * 2**30
"""What the tensors of a chunk's [rows, vocabulary] may take together where the user names no chunk."""

SLICE_BYTES = 64 * 2**20
"""Bytes of the weight's gradient that are computed before they join the sum, where the GPU multiplies in bf16."""


class RowScore(ABC):
    """What is asked of rows of logits: numbers per row, of which the first one has a gradient.

    `logits` makes z [n, V] anew, the logits over the temperature with banned ids at -inf, at least fp32; what it
    returns may be overwritten. The other arguments are [n].
    """

    @property
    @abstractmethod
    def bytes_per_logit(self) -> int:
        """The most that `numbers` or `slope` hold at a time, divided by n x V."""

    @abstractmethod
    def numbers(
        self, logits: Callable[[], Float[Tensor, "n V"]], *columns: Shaped[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], ...]:
        """Log-probabilities and the other numbers of the rows, [n] each."""

    @abstractmethod
    def slope(
        self, logits: Callable[[], Float[Tensor, "n V"]], gradient: Float[Tensor, " n"], *columns: Shaped[Tensor, " n"]
    ) -> Float[Tensor, "n V"]:
        """[n, V]: the gradient of the first number with respect to z, times `gradient` [n]."""


def score_rows(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "N D"],
    score: RowScore,
    columns: tuple[Shaped[Tensor, " N"], ...],
    banned: Spans,
    temperature: float,
    chunk: int | None,
) -> tuple[Float[Tensor, " N"], ...]:
    """The numbers of `score` for rows [N, D] under a head of weight [V, D]; columns are [N]."""
    size = chunk or max(1, CHUNK_BYTES // (score.bytes_per_logit * len(weight)))
    logits = partial(_logits, banned=banned, temperature=temperature or 1.0)
    return _ChunkedHead.apply(hidden, weight, score, logits, temperature or 1.0, size, *columns)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        score: RowScore,
        logits: Callable[[Tensor, Tensor], Tensor],
        temperature: float,
        chunk: int,
        *columns: Tensor,
    ) -> tuple[Tensor, ...]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.score, ctx.logits, ctx.temperature, ctx.chunk = score, logits, temperature, chunk
        ctx.hidden_dtype, ctx.dtype = hidden.dtype, dtype
        rows = hidden.to(dtype)
        ctx.save_for_backward(rows, weight, *columns)
        with torch.autocast(device, enabled=False):
            rows, head = _operand(rows, dtype), _operand(weight, dtype)
            parts = [
                score.numbers(partial(logits, rows[piece], head), *(c[piece] for c in columns))
                for piece in _pieces(len(rows), chunk)
            ]
        found = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, *columns = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(rows.device.type, enabled=False):
            rows, head = _operand(rows, ctx.dtype), _operand(weight, ctx.dtype)
            to_hidden = torch.empty_like(rows, dtype=ctx.hidden_dtype) if wants_hidden else None
            to_weight = torch.zeros_like(weight, dtype=_at_least_fp32(weight.dtype)) if wants_weight else None
            gradient = gradient / ctx.temperature
            for piece in _pieces(len(rows), ctx.chunk):
                logits = partial(ctx.logits, rows[piece], head)
                pull = ctx.score.slope(logits, gradient[piece], *(c[piece] for c in columns)).to(rows.dtype)
                if to_hidden is not None:
                    to_hidden[piece] = _product(pull, head)
                if to_weight is not None:
                    _add_product(to_weight, pull.t(), rows[piece])
                del pull
        if to_weight is not None:
            to_weight = to_weight.to(weight.dtype)
        return to_hidden, to_weight, None, None, None, None, *(None for _ in columns)


def _pieces(count: int, size: int) -> Iterator[slice]:
    """The pieces, at least one, so that no rows at all have results of the right type as well."""
    return (slice(start, start + size) for start in range(0, max(count, 1), size))


def _logits(rows: Tensor, head: Tensor, banned: Spans, temperature: float) -> Tensor:
    """`dirl.diffusion.sampling.scaled_logits` of the rows, without its copies."""
    z = _product(rows, head.t())
    if temperature != 1.0:
        z.div_(temperature)
    return ban_(z, banned)


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _operand(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to the compute dtype; off the GPU there is no product of bf16 operands with a result in fp32."""
    rounded = value.to(dtype)
    return rounded if rounded.is_cuda else rounded.to(_at_least_fp32(dtype))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, at least fp32, also where the operands are bf16."""
    if left.dtype == _at_least_fp32(left.dtype):
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the dtype of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    step = max(1, SLICE_BYTES // (total.element_size() * total.shape[1]))
    for start in range(0, len(total), step):
        total[start : start + step] += _product(left[start : start + step], right)
