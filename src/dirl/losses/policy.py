"""Terms of policy gradient losses: clipped surrogate, truncated importance weight, KL. Pure functions of tensors."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOG_BOUND = 10.0
"""Log-ratios and KL differences count as at most this before exp (as in DiRL's code), so that no token overflows.

Beyond it a term is constant, e^10 times its advantage or about e^10 of KL, and has no gradient: the token is left alone
instead of outweighing all others. Only the side that grows is bounded; on the other one exp goes to 0 by itself, and
the KL goes on to pull. What meets the bound is counted (`train/bounded`).
"""

LOG_FLOOR = -30.0
"""log F of a rejection that has become impossible under the current policy."""


def clipped_surrogate(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logp - old); also r, and where the clip took the gradient.

    DiRL (arXiv:2512.22234), eq. 7; PPO (arXiv:1707.06347), eq. 7.
    """
    ratio = (logprobs - old_logprobs.detach()).clamp(max=LOG_BOUND).exp()
    inside = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, inside * advantages)
    clipped = (inside * advantages < ratio * advantages) & (inside != ratio)
    return surrogate, ratio.detach(), clipped.detach()


def clipped_weight(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """sg(clip(r, 1 - low, 1 + high)) A log p: what is clipped weighs less, but keeps its gradient; else as above.

    CISPO (MiniMax-M1, arXiv:2506.13585), eq. 4 and 5.
    """
    ratio = (logprobs - old_logprobs).detach().clamp(max=LOG_BOUND).exp()
    inside = ratio.clamp(1 - clip_low, 1 + clip_high)
    return inside * advantages * logprobs, ratio, inside != ratio


def truncated_importance(
    old_logprobs: Float[Tensor, " N"], behaviour_logprobs: Float[Tensor, " N"], cap: float
) -> Float[Tensor, " N"]:
    """min(exp(old - behaviour), cap): from the policy that made a sample to the one that the ratio starts at."""
    return (old_logprobs - behaviour_logprobs).detach().clamp(max=math.log(cap)).exp()


def k3(logprobs: Float[Tensor, " N"], reference_logprobs: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1, d = min(ref - logp, LOG_BOUND)."""
    difference = (reference_logprobs.detach() - logprobs).clamp(max=LOG_BOUND)
    return difference.exp() - difference - 1


def k2(logprobs: Float[Tensor, " N"], reference_logprobs: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Schulman's k2 estimate of KL(policy || reference) per token: d^2 / 2, d = ref - logp within LOG_BOUND of 0.

    The expectation of its gradient is the gradient of KL(policy || reference); that of k3's is the gradient of
    KL(reference || policy).
    """
    return (reference_logprobs.detach() - logprobs).clamp(-LOG_BOUND, LOG_BOUND).square() / 2


def bounded(log_ratios: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """How many of them meet LOG_BOUND."""
    return (log_ratios.detach() > LOG_BOUND).float().sum()
