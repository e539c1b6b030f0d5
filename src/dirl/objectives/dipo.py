"""DiPO: every token is scored once, at the denoising step that committed it (DiRL, arXiv:2512.22234, eq. 7 and 8)."""

import math

import torch

from dirl.losses.policy import LOG_FLOOR, bounded, clipped_surrogate, k3, truncated_importance
from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.normalization import NORMALIZATIONS, Normalization
from dirl.objectives.scored import ScoredRow
from dirl.types import DecodingParams, Likelihood


class DiPO(Objective):
    """The clipped policy gradient of each token, -min(r A, clip(r) A), with a KL term and truncated importance weights.

    Args:
        clip_low: the ratio r is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the k3 estimate of KL(policy || reference); 0 needs no reference model.
        importance_cap: C of the truncated importance weight min(exp(old - behaviour), C), for engine/trainer mismatch
            and samples of older weights; None: no weight.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO).
        likelihood: `tokens` scores committed tokens (the paper's objective); `trajectory` adds the
            probability that the other positions were not committed, which makes the gradient exact.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        kl_coef: float = 0.0,
        importance_cap: float | None = None,
        normalization: Normalization = "token",
        likelihood: Likelihood = "tokens",
    ) -> None:
        def check(ok: bool, name: str, value: object, remedy: str) -> None:
            if not ok:
                raise ValueError(f"objective.{name}={value!r}: {remedy}")

        check(0 <= clip_low <= 1, "clip_low", clip_low, "use a number in [0, 1]")
        check(0 <= clip_high < math.inf, "clip_high", clip_high, "use a finite number that is not negative")
        check(0 <= kl_coef < math.inf, "kl_coef", kl_coef, "use a finite number that is not negative")
        capped = importance_cap is None or 0 < importance_cap < math.inf
        check(capped, "importance_cap", importance_cap, "use a positive number or null")
        check(normalization in NORMALIZATIONS, "normalization", normalization, "use token, sequence or constant")
        check(likelihood in ("tokens", "trajectory"), "likelihood", likelihood, "use tokens or trajectory")
        self.clip_low, self.clip_high, self.kl_coef = clip_low, clip_high, kl_coef
        self.importance_cap, self.normalization, self.likelihood = importance_cap, normalization, likelihood

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        if self.importance_cap is None:
            return "set objective.init_args.importance_cap, e.g. to 2"
        if self.likelihood == "trajectory" and decoding.choice_is_random:
            return (
                "objective.likelihood=trajectory asks with which probability the older policy left positions masked, "
                "which no trajectory holds: use likelihood=tokens, or decoding.confidence=max or strategy=sequential, "
                "where positions are left by rule"
            )
        return None

    def loss(self, row: ScoredRow) -> RowLoss:
        old, behaviour = row.old_logprobs, row.columns["behaviour_logprobs"]
        surrogate, ratio, clipped = self._surrogate(row)
        if self.importance_cap is not None:
            surrogate = surrogate * truncated_importance(old, behaviour, self.importance_cap)
        total = -(surrogate * row.weights).sum()
        mismatch = (old - behaviour).detach()
        sums = {
            "ratio": ratio.sum(),
            "clip_fraction": clipped.float().sum(),
            "mismatch_kl": -mismatch.sum(),
            "mismatch_abs": mismatch.abs().sum(),
            "bounded": bounded(row.logprobs - old),
        }
        if self.needs_reference:
            reference = row.columns["reference_logprobs"]
            kl = k3(row.logprobs, reference)
            sums["reference_kl"] = kl.detach().sum()
            sums["bounded"] = sums["bounded"] + bounded(reference - row.logprobs)
            total = total + self.kl_coef * (kl * row.weights).sum()
        if row.rejected is not None:
            loss, outside = self._of_rejected(row.rejected)
            total, sums["bounded"] = total + loss, sums["bounded"] + outside
        return RowLoss(total, sums)

    def _of_rejected(self, row: ScoredRow) -> tuple[torch.Tensor, torch.Tensor]:
        """`likelihood: trajectory`: each rejection is an event of its own, with its own ratio, clip and bound."""
        surrogate, _, _ = self._surrogate(row)
        # What is or was impossible has no ratio to speak of: a step from the floor would be one of e^30.
        impossible = (row.old_logprobs <= LOG_FLOOR) | (row.logprobs <= LOG_FLOOR)
        loss = -(surrogate.masked_fill(impossible, 0.0) * row.weights).sum()
        return loss, bounded((row.logprobs - row.old_logprobs).masked_fill(impossible, 0.0))

    def _surrogate(self, row: ScoredRow) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return clipped_surrogate(
            row.logprobs, row.old_logprobs, row.columns["advantages"], self.clip_low, self.clip_high
        )
