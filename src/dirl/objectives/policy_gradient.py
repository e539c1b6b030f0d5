"""What objectives that score single tokens have in common: ratio and clip, KL term, truncated importance weights."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dirl.losses.policy import LOG_BOUND, bounded, clipped_surrogate, clipped_weight, k2, k3, truncated_importance
from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.normalization import NORMALIZATIONS, Normalization
from dirl.objectives.scored import ScoredRow
from dirl.objectives.subsets import Subset, ViewChoice
from dirl.types import DecodingParams

Ratio = Literal["token", "sequence", "cispo", "none"]
RATIOS = ("token", "sequence", "cispo", "none")
KL = Literal["k2", "k3"]
Surrogate = tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]
"""[N] each: the objective of each token, its ratio, and where the clip was at work."""


class PolicyGradient(Objective):
    """The policy gradient of each scored token; subclasses choose which views the model is shown.

    Args:
        ratio: what is clipped, and how. `token`: min(r A, clip(r) A) with the ratio r of each token (PPO). `sequence`:
            the same with one ratio for a trajectory, the geometric mean of its tokens' (GSPO, arXiv:2507.18071); its
            bounds are usually a hundred times tighter. `cispo`: sg(clip(r)) A log p, where the clip spares no token
            (MiniMax-M1, arXiv:2506.13585). `none`: A log p, REINFORCE.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the estimate of KL(policy || reference); 0 needs no reference model.
        kl: the estimate, `k2` or `k3`.
        importance_cap: C of the truncated importance weight min(exp(old - behaviour), C), for engine/trainer mismatch
            and samples of older weights; None: no weight.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO).
        view_fraction: random part of a step's views that is learned from, with the same expectation.
        view_choice: `uniform`, or `weighted` by |advantage| times surprise.
        trajectory_fraction: random part of each group that is learned from, with the same expectation.
    """

    at_the_draw = True
    """Whether each token is scored at the state at which it was drawn; if not, its behaviour log-prob, which is of that
    state, is no measure of the trainer's: there is no importance weight, and no mismatch to be logged."""

    def __init__(
        self,
        ratio: Ratio = "token",
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        kl_coef: float = 0.0,
        kl: KL = "k3",
        importance_cap: float | None = None,
        normalization: Normalization = "token",
        view_fraction: float = 1.0,
        view_choice: ViewChoice = "uniform",
        trajectory_fraction: float = 1.0,
    ) -> None:
        check_option(ratio in RATIOS, "ratio", ratio, f"use one of {', '.join(RATIOS)}")
        check_option(0 <= clip_low <= 1, "clip_low", clip_low, "use a number in [0, 1]")
        check_option(0 <= clip_high < math.inf, "clip_high", clip_high, "use a finite number that is not negative")
        check_option(0 <= kl_coef < math.inf, "kl_coef", kl_coef, "use a finite number that is not negative")
        check_option(kl in ("k2", "k3"), "kl", kl, "use k2 or k3")
        capped = importance_cap is None or 0 < importance_cap < math.inf
        check_option(capped, "importance_cap", importance_cap, "use a positive number or null")
        known = normalization in NORMALIZATIONS
        check_option(known, "normalization", normalization, "use token, sequence or constant")
        if ratio == "sequence" and view_fraction < 1:
            raise ValueError(
                f"objective.ratio=sequence is that of all views, and objective.view_fraction={view_fraction:g} leaves "
                "some out: use view_fraction=1, or trajectory_fraction, or ratio=token"
            )
        self.ratio, self.clip_low, self.clip_high = ratio, clip_low, clip_high
        self.kl_coef, self.kl = kl_coef, kl
        self.importance_cap, self.normalization = importance_cap, normalization
        self.subset = Subset(view_fraction, trajectory_fraction, view_choice)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def scaled_by_advantages(self) -> bool:  # type: ignore[override]
        """Without a KL term, and without values, which give advantages of their own."""
        return self.kl_coef == 0 and self.gae is None

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        if not self.at_the_draw:
            return super().refuses_stale(decoding)
        return "set objective.init_args.importance_cap, e.g. to 2" if self.importance_cap is None else None

    def needs_sums(self, moved: bool) -> bool:
        return moved and self.ratio == "sequence"

    def summands(self, row: ScoredRow) -> Mapping[str, Float[Tensor, " N"]]:
        return {"log_ratio": row.weights * (row.logprobs - row.old_logprobs), "weight": row.weights}

    def loss(self, row: ScoredRow) -> RowLoss:
        old, behaviour = row.old_logprobs, row.columns["behaviour_logprobs"]
        surrogate, ratio, clipped = self.surrogate(row)
        if self.importance_cap is not None:
            surrogate = surrogate * truncated_importance(old, behaviour, self.importance_cap)
        total = -(surrogate * row.weights).sum()
        sums = {
            "ratio": ratio.sum(),
            "clip_fraction": clipped.float().sum(),
            "bounded": bounded(row.logprobs - old),
        }
        if self.at_the_draw:
            mismatch = (old - behaviour).detach()
            sums |= {"mismatch_kl": -mismatch.sum(), "mismatch_abs": mismatch.abs().sum()}
        if self.needs_reference:
            reference = row.columns["reference_logprobs"]
            kl = (k2 if self.kl == "k2" else k3)(row.logprobs, reference)
            sums["reference_kl"] = kl.detach().sum()
            sums["bounded"] = sums["bounded"] + bounded(reference - row.logprobs)
            total = total + self.kl_coef * (kl * row.weights).sum()
        return RowLoss(total, sums)

    def surrogate(self, row: ScoredRow) -> Surrogate:
        """What is maximised of each position of the row, not yet weighed."""
        advantages, bounds = row.columns["advantages"], (self.clip_low, self.clip_high)
        if self.ratio == "cispo":
            return clipped_weight(row.logprobs, row.old_logprobs, advantages, *bounds)
        if self.ratio == "none":
            ratio = (row.logprobs - row.old_logprobs).detach().clamp(max=LOG_BOUND).exp()
            return advantages * row.logprobs, ratio, torch.zeros_like(ratio, dtype=torch.bool)
        if self.ratio == "sequence":
            return clipped_surrogate(row.logprobs, row.logprobs - self._log_ratio(row), advantages, *bounds)
        return clipped_surrogate(row.logprobs, row.old_logprobs, advantages, *bounds)

    @staticmethod
    def _log_ratio(row: ScoredRow) -> Tensor:
        """[N] of the trajectory of each position, without gradient: the weighted mean of its tokens'.

        With old = log p - this, the ratio of every token is its trajectory's, and its gradient that of the token (the
        token form of GSPO, eq. 10 there): summed over a trajectory it is the gradient of the trajectory's own.
        """
        if "log_ratio" not in row.sums:  # the policy has not moved
            return torch.zeros_like(row.logprobs)
        return row.sums["log_ratio"] / row.sums["weight"]


def check_option(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raise ValueError for a value that an option of an objective cannot have."""
    if not ok:
        raise ValueError(f"objective.{name}={value!r}: {remedy}")
