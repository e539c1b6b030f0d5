"""LightningRL: the policy gradient along the trace, and supervised learning of the right answers beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dirl.objectives.base import RowLoss
from dirl.objectives.best_of_group import right
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import PolicyGradient, check_option
from dirl.objectives.scored import ScoredRow
from dirl.types import Trajectory


class LightningRL(PolicyGradient):
    """The clipped policy gradient of each token at its denoising step, plus nll_coef times -log p of right answers.

    LightningRL (arXiv:2603.13319) rewards speed, which may unlearn what is right: the second term holds on to it. It is
    meant for the advantage of the same paper, `rollout.advantage: {class_path: dirl.advantages.LightningRL}`, whose
    groups are filtered by `rollout.dynamic_sampling`. What is our choice: both terms are normalised alike, by all
    tokens or trajectories; in the published code the second one is a mean over the tokens of right answers, so
    that nll_coef counts there as nll_coef over their share counts here.

    Further options are those of `dirl.objectives.PolicyGradient`.

    Args:
        nll_coef: lambda, weight of -log p of each token of right answers, at the step that committed it.
        clip_high: the ratio is clipped above at 1 + clip_high.
        kl_coef: weight of the estimate of KL(policy || reference); 0 needs no reference model.
        normalization: of both terms: `token`, `sequence` or `constant`.
    """

    def __init__(
        self,
        nll_coef: float = 0.1,
        clip_high: float = 0.2,
        kl_coef: float = 0.01,
        normalization: Normalization = "sequence",
        **options: Any,
    ) -> None:
        super().__init__(clip_high=clip_high, kl_coef=kl_coef, normalization=normalization, **options)
        check_option(0 <= nll_coef < math.inf, "nll_coef", nll_coef, "use a finite number that is not negative")
        self.nll_coef = nll_coef

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        return {**super().columns(trajectory), "right": float(right(trajectory))}

    def loss(self, row: ScoredRow) -> RowLoss:
        total, sums = super().loss(row)
        learned = row.columns["right"]
        sums |= {"right": learned.sum(), "nll_of_right": -(learned * row.logprobs.detach()).sum()}  # over all tokens
        return RowLoss(total - self.nll_coef * (learned * row.weights * row.logprobs).sum(), sums)
