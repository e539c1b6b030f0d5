"""LightningRL: the policy gradient along the trace, and supervised learning of the right answers beside it."""

import math
from collections.abc import Mapping, Sequence

from dirl.objectives.base import RowLoss
from dirl.objectives.best_of_group import right
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import KL, PolicyGradient, Ratio, check_option
from dirl.objectives.scored import ScoredRow
from dirl.objectives.subsets import ViewChoice
from dirl.types import Trajectory


class LightningRL(PolicyGradient):
    """The clipped policy gradient of each token at its denoising step, plus nll_coef times -log p of right answers.

    LightningRL (arXiv:2603.13319) rewards speed, which may unlearn what is right: the second term holds on to it. It is
    meant for the advantage of the same paper, `rollout.advantage: {class_path: dirl.advantages.LightningRL}`, whose
    groups are filtered by `rollout.dynamic_sampling`. What is our choice: both terms are normalised alike, by all
    tokens or trajectories; in the published code the second one is a mean over the tokens of right answers, so
    that nll_coef counts there as nll_coef over their share counts here.

    Args:
        nll_coef: lambda, weight of -log p of each token of right answers, at the step that committed it.
        ratio: `token`, `sequence` (GSPO), `cispo` or `none` (REINFORCE); see `dirl.objectives.PolicyGradient`.
        clip_low: the ratio r is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the estimate of KL(policy || reference); 0 needs no reference model.
        kl: the estimate, `k2` or `k3`.
        importance_cap: C of the truncated importance weight min(exp(old - behaviour), C) of the policy gradient, for
            engine/trainer mismatch and samples of older weights; None: no weight.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO).
        view_fraction: random part of a step's views that is learned from, with the same expectation.
        view_choice: `uniform`, or `weighted` by |advantage| times surprise.
        trajectory_fraction: random part of each group that is learned from, with the same expectation.
    """

    def __init__(
        self,
        nll_coef: float = 0.1,
        ratio: Ratio = "token",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.01,
        kl: KL = "k3",
        importance_cap: float | None = None,
        normalization: Normalization = "sequence",
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
        check_option(0 <= nll_coef < math.inf, "nll_coef", nll_coef, "use a finite number that is not negative")
        self.nll_coef = nll_coef

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        return {**super().columns(trajectory), "right": float(right(trajectory))}

    def loss(self, row: ScoredRow) -> RowLoss:
        total, sums = super().loss(row)
        learned = row.columns["right"]
        sums |= {"right": learned.sum(), "nll_of_right": -(learned * row.logprobs.detach()).sum()}  # over all tokens
        return RowLoss(total - self.nll_coef * (learned * row.weights * row.logprobs).sum(), sums)
