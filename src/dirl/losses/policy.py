"""The DiPO loss: clipped policy gradient per token, with KL to a reference and truncated importance weights.

DiRL (arXiv:2512.22234), eq. 7 and 8; truncation as min(exp(old - behaviour), C).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["token", "sequence", "constant"]

LOG_BOUND = 10.0
"""Log-ratios and KL differences count as at most this before exp (as in DiRL's code), so that no token overflows.

Beyond it a term is constant, e^10 times its advantage or about e^10 of KL, and has no gradient: the token is left alone
instead of outweighing all others. Only the side that grows is bounded; on the other one exp goes to 0 by itself, and
the KL goes on to pull. What meets the bound is counted (`train/bounded`).
"""


@dataclass(frozen=True)
class PolicyLossConfig:
    """Options of the DiPO loss.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the k3 estimate of KL(policy || reference); 0 needs no reference model.
        importance_cap: C of the truncated importance weight for engine/trainer mismatch; None: no weight.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO).
        likelihood: `tokens` scores committed tokens (the paper's objective); `trajectory` adds the
            probability that the other positions were not committed, which makes the gradient exact.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coef: float = 0.0
    importance_cap: float | None = None
    normalization: Normalization = "token"
    likelihood: Literal["tokens", "trajectory"] = "tokens"

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, remedy: str) -> None:
            if not ok:
                raise ValueError(f"loss.{name}={getattr(self, name)!r}: {remedy}")

        check(0 <= self.clip_low <= 1, "clip_low", "use a number in [0, 1]")
        check(0 <= self.clip_high < math.inf, "clip_high", "use a finite number that is not negative")
        check(0 <= self.kl_coef < math.inf, "kl_coef", "use a finite number that is not negative")
        cap = self.importance_cap
        check(cap is None or 0 < cap < math.inf, "importance_cap", "use a positive number or null")
        check(
            self.normalization in ("token", "sequence", "constant"), "normalization", "use token, sequence or constant"
        )
        check(self.likelihood in ("tokens", "trajectory"), "likelihood", "use tokens or trajectory")


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor
    sums: dict[str, Tensor]
    """Sums over the scored positions, without gradient; divide by `sums["tokens"]` for means."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    divisor: Tensor | float,
    config: PolicyLossConfig,
) -> PolicyLoss:
    """Loss of N scored tokens. All tensors [N]; only `logprobs` carries a gradient.

    Args:
        old_logprobs: the trainer's own before the update; `logprobs.detach()` when the policy has not moved.
        weights: normalisation weight of each token, see `PolicyLossConfig.normalization`.
        divisor: of the whole optimizer step, over all ranks.
    """
    surrogate, ratio, clipped = clipped_surrogate(logprobs, old_logprobs, advantages, config)
    mismatch = (old_logprobs - behaviour_logprobs).detach()
    if config.importance_cap is not None:
        surrogate = surrogate * mismatch.clamp(max=math.log(config.importance_cap)).exp()
    total = -(surrogate * weights).sum()
    sums = {
        "tokens": torch.ones_like(logprobs).sum(),
        "ratio": ratio.sum(),
        "clip_fraction": clipped.float().sum(),
        "mismatch_kl": -mismatch.sum(),
        "mismatch_abs": mismatch.abs().sum(),
        "bounded": bounded(logprobs - old_logprobs),
    }
    if reference_logprobs is not None:
        kl = k3(logprobs, reference_logprobs)
        sums["reference_kl"] = kl.detach().sum()
        sums["bounded"] = sums["bounded"] + bounded(reference_logprobs - logprobs)
        if config.kl_coef > 0:
            total = total + config.kl_coef * (kl * weights).sum()
    return PolicyLoss(total / divisor, sums)


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, config: PolicyLossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """min(r A, clip(r) A) with r = exp(logp - old); also r and where the clip took the gradient away."""
    ratio = (logprobs - old_logprobs.detach()).clamp(max=LOG_BOUND).exp()
    inside = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate = torch.minimum(ratio * advantages, inside * advantages)
    clipped = (inside * advantages < ratio * advantages) & (inside != ratio)
    return surrogate, ratio.detach(), clipped.detach()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1, d = min(ref - logp, LOG_BOUND)."""
    difference = (reference_logprobs.detach() - logprobs).clamp(max=LOG_BOUND)
    return difference.exp() - difference - 1


def bounded(log_ratios: Tensor) -> Tensor:
    """How many of them meet LOG_BOUND."""
    return (log_ratios.detach() > LOG_BOUND).float().sum()
