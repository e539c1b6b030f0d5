"""The head on chosen positions alone: log-probabilities, entropies and selection factors, in chunks.

Only the rows that are scored reach the vocabulary, and no more than one chunk of [rows, vocabulary] is alive at a
time: nothing of it is kept for the backward pass, which computes the logits of each chunk once more, its gradient in
their place, and adds up the gradient of the head's weight in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dirl.diffusion.sampling import cut_logits, cuts
from dirl.losses.policy import LOG_FLOOR
from dirl.models.chunked_head import RowScore, score_rows
from dirl.spans import Spans
from dirl.types import DecodingParams


def target_scores(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "N D"],
    targets: Int64[Tensor, " N"],
    banned: Spans,
    decoding: DecodingParams,
    chunk: int | None = None,
    with_entropy: bool = True,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Score one target per row.

    Args:
        weight: [V, D] of the model's head; hidden: [N, D]; targets: [N]; banned: `ModelSpec.banned`.
        chunk: rows that meet the vocabulary at a time; None: what `dirl.models.chunked_head.CHUNK_BYTES` allow.

    Returns:
        log-probability of the target under the distribution it was drawn from (temperature, cuts), nats;
        entropy of that distribution, nats, without gradient; confidence (design: before the cuts), without
        gradient. Each [N], fp32.
    """
    score = _TargetScore(decoding, with_entropy)
    columns = (targets,)
    logprobs, entropies, confidence = score_rows(weight, hidden, score, columns, banned, decoding.temperature, chunk)
    return logprobs, entropies, confidence


def selection_factors(
    weight: Float[Tensor, "V D"],
    hidden: Float[Tensor, "N D"],
    bound: Float[Tensor, " N"],
    inclusive: Bool[Tensor, " N"],
    banned: Spans,
    decoding: DecodingParams,
    chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """log F_j: the probability that a masked position drew a candidate that was not committed.

    F = sum over tokens v of the draw distribution q(v) [c(v) < bound] (or <= bound where inclusive), with c
    the confidence before top-k and top-p. The indicator is constant in the gradient.

    Args:
        weight: [V, D] of the model's head; hidden: [N, D]; bound: [N] confidence; inclusive: [N] bool.
        chunk: see `target_scores`.

    Returns:
        [N] log F in fp32; LOG_FLOOR, without gradient, where no token could have been rejected.
    """
    score = _RejectionScore(decoding)
    (log_factors,) = score_rows(weight, hidden, score, (bound, inclusive), banned, decoding.temperature, chunk)
    return log_factors


@dataclass(frozen=True)
class _TargetScore(RowScore):
    decoding: DecodingParams
    with_entropy: bool

    @property
    def bytes_per_logit(self) -> int:
        return _SORTED_BYTES if cuts(self.decoding) else 8  # two in fp32

    def numbers(self, logits: Callable[[], Tensor], *columns: Tensor) -> tuple[Tensor, ...]:
        (ids,) = columns
        full, drawn = self._log_probs(logits(), ids)
        logprobs = _pick(drawn, ids)
        best = full.amax(-1) if self.decoding.confidence == "max" else _pick(full, ids)
        if not self.with_entropy:
            return logprobs, torch.zeros_like(logprobs), best.exp()
        del full
        probs = drawn.exp()
        del drawn
        return logprobs, torch.special.entr(probs, out=probs).sum(-1), best.exp()

    def slope(self, logits: Callable[[], Tensor], gradient: Tensor, *columns: Tensor) -> Tensor:
        """d log q(y) / dz = [v = y] - q(v)."""
        (ids,) = columns
        _, drawn = self._log_probs(logits(), ids)
        pull = drawn.exp_().mul_(-gradient[:, None])
        return pull.scatter_add_(-1, ids[:, None], gradient[:, None])

    def _log_probs(self, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Before the cuts and after them, [n, V] each; one tensor where there are none."""
        full = z.log_softmax(-1)
        if not cuts(self.decoding):
            return full, full
        # The target was inside the cut when it was drawn; it stays scorable after the policy has moved.
        gone = cut_logits(z, self.decoding) == float("-inf")
        gone.scatter_(-1, ids[:, None], False)
        return full, z.masked_fill_(gone, float("-inf")).log_softmax(-1)


@dataclass(frozen=True)
class _RejectionScore(RowScore):
    decoding: DecodingParams

    @property
    def bytes_per_logit(self) -> int:
        return _SORTED_BYTES if cuts(self.decoding) else 14  # three in fp32, two bools

    def numbers(self, logits: Callable[[], Tensor], *columns: Tensor) -> tuple[Tensor, ...]:
        bound, inclusive = columns
        drawn, wins, impossible = self._events(logits(), bound, inclusive)
        total = drawn.logsumexp(-1)
        log_factor = drawn.masked_fill_(wins, float("-inf")).logsumexp(-1) - total
        return (log_factor.masked_fill_(impossible, LOG_FLOOR),)

    def slope(self, logits: Callable[[], Tensor], gradient: Tensor, *columns: Tensor) -> Tensor:
        """d log F / dz = q(v | rejected) - q(v)."""
        bound, inclusive = columns
        drawn, wins, _ = self._events(logits(), bound, inclusive)  # an impossible row wins nowhere: its slope is 0
        every = drawn.softmax(-1)
        rejected = drawn.masked_fill_(wins, float("-inf")).softmax(-1)
        return rejected.sub_(every).mul_(gradient[:, None])

    def _events(self, z: Tensor, bound: Tensor, inclusive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z after the cuts; which tokens would have been committed; rows in which all would [n]."""
        confidence = z.softmax(-1)
        limit = bound[:, None]
        wins = torch.where(inclusive[:, None], confidence > limit, confidence >= limit)
        del confidence
        z = cut_logits(z, self.decoding)
        impossible = (wins | (z == float("-inf"))).all(-1)  # only after the policy has moved: a constant, not a NaN
        return z, wins.masked_fill_(impossible[:, None], False), impossible


_SORTED_BYTES = 40
"""Bytes of a logit where top-k, top-p or min-p sort the vocabulary: values, int64 indices, the sort's own copies."""


def _pick(table: Tensor, ids: Tensor) -> Tensor:
    return table.gather(-1, ids[:, None]).squeeze(-1)
