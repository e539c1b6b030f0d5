"""The head on chosen positions alone: log-probabilities, entropies and selection factors, in chunks.

Only the rows that are scored reach the vocabulary, and no more than one chunk of [rows, vocabulary] is
alive at a time: chunks are recomputed in the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dirl.diffusion.sampling import cut_logits, cuts, scaled_logits
from dirl.types import DecodingParams

LogitsFn = Callable[[Tensor], Tensor]

LOG_FLOOR = -30.0
"""log F of a rejection that has become impossible under the current policy."""


def target_scores(
    logits_fn: LogitsFn,
    hidden: Tensor,
    targets: Tensor,
    mask_token_id: int,
    params: DecodingParams,
    chunk: int,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score one target per row.

    Args:
        logits_fn: the model's head, [n, D] -> [n, V].
        hidden: [N, D]; targets: [N].

    Returns:
        log-probability of the target under the distribution it was drawn from (temperature, cuts), nats;
        entropy of that distribution, nats, without gradient; confidence (design: before the cuts), without
        gradient. Each [N], fp32.
    """

    def score(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = scaled_logits(logits_fn(rows), mask_token_id, params.temperature)
        full = z.log_softmax(-1)
        drawn = full
        if cuts(params):
            # The target was inside the cut when it was drawn; it stays scorable after the policy has moved.
            keep = cut_logits(z.detach(), params) > float("-inf")
            keep = keep.scatter(-1, ids[:, None], True)
            drawn = z.masked_fill(~keep, float("-inf")).log_softmax(-1)
        logprobs = drawn.gather(-1, ids[:, None]).squeeze(-1)
        with torch.no_grad():
            probs = drawn.exp() if with_entropy else None
            entropy = torch.special.entr(probs).sum(-1) if with_entropy else torch.zeros_like(logprobs)
            best = full.max(-1).values if params.confidence == "max" else full.gather(-1, ids[:, None]).squeeze(-1)
        return logprobs, entropy, best.exp()

    return _chunked(score, (hidden, targets), chunk)


def selection_factors(
    logits_fn: LogitsFn,
    hidden: Tensor,
    bound: Tensor,
    inclusive: Tensor,
    mask_token_id: int,
    params: DecodingParams,
    chunk: int,
) -> Tensor:
    """log F_j: the probability that a masked position drew a candidate that was not committed.

    F = sum over tokens v of the draw distribution q(v) [c(v) < bound] (or <= bound where inclusive), with c
    the confidence before top-k and top-p. The indicator is constant in the gradient.

    Args:
        hidden: [N, D]; bound: [N] confidence; inclusive: [N] bool.

    Returns:
        [N] log F in fp32; LOG_FLOOR, without gradient, where no token could have been rejected.
    """

    def score(rows: Tensor, limit: Tensor, closed: Tensor) -> tuple[Tensor]:
        z = scaled_logits(logits_fn(rows), mask_token_id, params.temperature)
        with torch.no_grad():
            confidence = z.softmax(-1)
            loses = torch.where(closed[:, None], confidence <= limit[:, None], confidence < limit[:, None])
            kept = cut_logits(z, params) > float("-inf")
            impossible = ~(loses & kept).any(-1)  # only after the policy has moved: a constant, not a NaN
            loses |= impossible[:, None]
        drawn = z.masked_fill(~kept, float("-inf"))
        log_factor = torch.logsumexp(drawn.masked_fill(~loses, float("-inf")), -1) - torch.logsumexp(drawn, -1)
        return (log_factor.masked_fill(impossible, LOG_FLOOR),)

    (log_factor,) = _chunked(score, (hidden, bound, inclusive), chunk)
    return log_factor


def _chunked(fn: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...], chunk: int) -> tuple[Tensor, ...]:
    """fn over chunks of rows, results concatenated; with more than one chunk, recomputed in the backward."""
    count = len(rows[0])
    if count <= chunk:
        return fn(*rows)
    parts = []
    for start in range(0, count, chunk):
        part = [r[start : start + chunk] for r in rows]
        parts.append(checkpoint(fn, *part, use_reentrant=False) if torch.is_grad_enabled() else fn(*part))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
