"""DiPO: every token is scored once, at the denoising step that committed it (DiRL, arXiv:2512.22234, eq. 7 and 8)."""

from typing import Any

import torch

from dirl.losses.policy import LOG_FLOOR, bounded
from dirl.objectives.base import RowLoss
from dirl.objectives.policy_gradient import PolicyGradient, check_option
from dirl.objectives.scored import ScoredRow
from dirl.types import DecodingParams, Likelihood


class DiPO(PolicyGradient):
    """The clipped policy gradient of each token at its denoising step, with a KL term and importance weights.

    Further options are those of `dirl.objectives.PolicyGradient`.

    Args:
        likelihood: `tokens` scores committed tokens (the paper's objective); `trajectory` adds the
            probability that the other positions were not committed, which makes the gradient exact.
    """

    scaled_by_advantages = PolicyGradient.scaled_by_advantages

    def __init__(self, likelihood: Likelihood = "tokens", **options: Any) -> None:
        super().__init__(**options)
        check_option(likelihood in ("tokens", "trajectory"), "likelihood", likelihood, "use tokens or trajectory")
        if likelihood == "trajectory" and self.ratio == "sequence":
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
                "which no trajectory holds: use likelihood=tokens, or model.decoding.confidence=max or "
                "model.decoding.strategy=sequential, where positions are left by rule"
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
