"""DiPO: every token is scored once, at the denoising step that committed it (DiRL, arXiv:2512.22234, eq. 7 and 8)."""

import torch

from dirl.losses.policy import LOG_FLOOR, bounded
from dirl.objectives.base import RowLoss
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import KL, PolicyGradient, Ratio, check_option
from dirl.objectives.scored import ScoredRow
from dirl.objectives.subsets import ViewChoice
from dirl.types import DecodingParams, Likelihood


class DiPO(PolicyGradient):
    """The clipped policy gradient of each token at its denoising step, with a KL term and importance weights.

    Args:
        clip_low: the ratio r is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the estimate of KL(policy || reference); 0 needs no reference model.
        importance_cap: C of the truncated importance weight min(exp(old - behaviour), C), for engine/trainer mismatch
            and samples of older weights; None: no weight.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO).
        likelihood: `tokens` scores committed tokens (the paper's objective); `trajectory` adds the
            probability that the other positions were not committed, which makes the gradient exact.
        ratio: `token`, `sequence` (GSPO), `cispo` or `none` (REINFORCE); see `dirl.objectives.PolicyGradient`.
        kl: the estimate of the KL term, `k2` or `k3`.
        view_fraction: random part of a step's views that is learned from, with the same expectation.
        view_choice: `uniform`, or `weighted` by |advantage| times surprise.
        trajectory_fraction: random part of each group that is learned from, with the same expectation.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        kl_coef: float = 0.0,
        importance_cap: float | None = None,
        normalization: Normalization = "token",
        likelihood: Likelihood = "tokens",
        ratio: Ratio = "token",
        kl: KL = "k3",
        view_fraction: float = 1.0,
        view_choice: ViewChoice = "uniform",
        trajectory_fraction: float = 1.0,
    ) -> None:
        super().__init__(
            ratio,
            clip_low,
            clip_high,
            kl_coef,
            kl,
            importance_cap,
            normalization,
            view_fraction,
            view_choice,
            trajectory_fraction,
        )
        check_option(likelihood in ("tokens", "trajectory"), "likelihood", likelihood, "use tokens or trajectory")
        if likelihood == "trajectory" and ratio == "sequence":
            raise ValueError(
                "objective.ratio=sequence is a mean over tokens, and objective.likelihood=trajectory adds events that "
                "are no tokens: use ratio=token or likelihood=tokens"
            )
        self.likelihood = likelihood

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        if refusal := super().refuses_stale(decoding):
            return refusal
        if self.likelihood == "trajectory" and decoding.choice_is_random:
            return (
                "objective.likelihood=trajectory asks with which probability the older policy left positions masked, "
                "which no trajectory holds: use likelihood=tokens, or decoding.confidence=max or strategy=sequential, "
                "where positions are left by rule"
            )
        return None

    def loss(self, row: ScoredRow) -> RowLoss:
        total, sums = super().loss(row)
        if row.rejected is not None:
            loss, outside = self._of_rejected(row.rejected)
            total, sums["bounded"] = total + loss, sums["bounded"] + outside
        return RowLoss(total, sums)

    def _of_rejected(self, row: ScoredRow) -> tuple[torch.Tensor, torch.Tensor]:
        """`likelihood: trajectory`: each rejection is an event of its own, with its own ratio, clip and bound."""
        surrogate, _, _ = self.surrogate(row)
        # What is or was impossible has no ratio to speak of: a step from the floor would be one of e^30.
        impossible = (row.old_logprobs <= LOG_FLOOR) | (row.logprobs <= LOG_FLOOR)
        loss = -(surrogate.masked_fill(impossible, 0.0) * row.weights).sum()
        return loss, bounded((row.logprobs - row.old_logprobs).masked_fill(impossible, 0.0))
