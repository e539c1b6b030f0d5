"""Attention by the plan of a `SegmentMask`: one matrix product per batch of segments, forward and backward.

The backward pass computes the probabilities of each batch anew, so that no more than one batch of scores is alive at
a time and only the inputs and the output are kept: memory does not grow with the pairs.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from dirl.attention.segments import SegmentBatch, SegmentMask


@torch.compiler.disable  # the loop is as long as the plan: every row would be another graph
def segment_attention(
    query: Float[Tensor, "1 H T D"],
    key: Float[Tensor, "1 Hkv T D"],
    value: Float[Tensor, "1 Hkv T D"],
    mask: SegmentMask,
    scale: float,
) -> Float[Tensor, "1 T H D"]:
    """Attention of query [1, H, T, D] to key and value [1, Hkv, T, D] -> [1, T, H, D].

    Computed in fp32 where the inputs are of half precision.
    """
    return _SegmentAttention.apply(query, key, value, mask, scale)


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, mask: SegmentMask, scale: float) -> Tensor:
        q, k, v = (_rows(x, key.shape[1]) for x in (query, key, value))
        q *= scale
        out = torch.empty_like(q)  # each token is a query once
        with torch.autocast(query.device.type, enabled=False):
            for batch in mask.batches:
                probabilities = _probabilities(_take(q, batch.queries), _take(k, batch.keys), batch)
                _put(out, batch.queries, probabilities @ _take(v, batch.keys))
        output = _heads(out).transpose(1, 2).to(value.dtype)
        ctx.save_for_backward(query, key, value, output)
        ctx.mask, ctx.scale = mask, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        heads, scale = key.shape[1], ctx.scale
        out, d_out = (_rows(x.transpose(1, 2), heads) for x in (output, gradient))
        q, k, v = (_rows(x, heads) for x in (query, key, value))
        q *= scale
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mean = (out * d_out).sum(dim=-1, keepdim=True)  # of the scores' gradient under the probabilities
        with torch.autocast(query.device.type, enabled=False):
            for batch in ctx.mask.batches:
                q_here, d_here = _take(q, batch.queries), _take(d_out, batch.queries)
                k_here, v_here = _take(k, batch.keys), _take(v, batch.keys)
                probabilities = _probabilities(q_here, k_here, batch)
                _add(d_v, batch.keys, probabilities.mT @ d_here)
                d_scores = (d_here @ v_here.mT).sub_(_take(mean, batch.queries)).mul_(probabilities)
                _put(d_q, batch.queries, d_scores @ k_here)
                _add(d_k, batch.keys, d_scores.mT @ q_here)
        d_q *= scale
        found = (_heads(d).to(x.dtype) for d, x in ((d_q, query), (d_k, key), (d_v, value)))
        return *found, None, None


def _probabilities(query: Tensor, key: Tensor, batch: SegmentBatch) -> Tensor:
    """Softmax of the scores of query [heads * N, Q * heads per key head, D] and key [heads * N, K, D]."""
    scores = query @ key.mT
    segments, queries = batch.queries.shape
    shown = scores.view(-1, segments, queries, scores.shape[1] // queries, scores.shape[2])[..., batch.free :]
    shown.masked_fill_(batch.hidden[:, :, None], float("-inf"))
    return scores.softmax(dim=-1)


def _rows(x: Tensor, heads: int) -> Tensor:
    """[1, H, T, D] -> [heads, T + 1, H / heads, D]: the heads that share a key head together, and zeros for padding."""
    grouped = x[0].unflatten(0, (heads, -1)).transpose(1, 2)
    shape = heads, grouped.shape[1] + 1, *grouped.shape[2:]
    rows = grouped.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))
    rows[:, -1] = 0
    rows[:, :-1] = grouped
    return rows


def _heads(rows: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    return rows[:, :-1].transpose(1, 2).flatten(0, 1)[None]


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """[heads, T + 1, G, D] at [N, L] -> [heads * N, L * G, D]."""
    return rows.index_select(1, index.flatten()).view(len(rows) * len(index), -1, rows.shape[-1])


def _put(rows: Tensor, index: Tensor, values: Tensor) -> None:
    """Write what `_take` would read."""
    rows.index_copy_(1, index.flatten(), values.view(len(rows), -1, *rows.shape[2:]))


def _add(rows: Tensor, index: Tensor, values: Tensor) -> None:
    rows.index_add_(1, index.flatten(), values.view(len(rows), -1, *rows.shape[2:]))
