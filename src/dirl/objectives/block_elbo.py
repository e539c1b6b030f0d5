"""Block ELBO: the ratio of a whole response, estimated at random masks, is clipped (ESPO, arXiv:2512.03759; EBPO)."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from dirl.losses.policy import bounded, clipped_surrogate, k3
from dirl.objectives.base import RowLoss
from dirl.objectives.bounds import LikelihoodBound
from dirl.objectives.policy_gradient import KL, check_option
from dirl.objectives.scored import ScoredRow


class BlockELBO(LikelihoodBound):
    """min(r A, clip(r) A) with one ratio r for a response, by estimates L of its log-likelihood's lower bound.

    With the same masks for all policies, and T tokens in the response,

        log r = (L - L_old) / T            ESPO (`length_normalized`)
        log r = L - L_old                  EBPO (LLaDA2.1 report, arXiv:2602.08676, eq. 4 and 5)
        loss = mean over responses of - min(r A, clip(r, 1 - low, 1 + high) A) + kl_coef KL / T

    with KL by k2, (L - L_ref)^2 / 2 (ESPO's), or by k3, exp(L_ref - L) - (L_ref - L) - 1; over T only if
    `length_normalized`. ESPO masks its whole response, of a fixed length; here, as in EBPO, every block has mask sets
    of its own behind the finished blocks before it, T counts the tokens of its decoded blocks, and EBPO's levels weigh
    the same. The bound is not the probability with which the trace was sampled: its gradient is biased.

    Args:
        views_per_block: mask sets of each block; ESPO has two pairs.
        complementary: they come in pairs, of which one masks what the other shows (ESPO's antithetic masks).
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        length_normalized: the ratio is that of a token, the geometric mean; else that of the response.
        kl_coef: weight of the estimate of KL(policy || reference); 0 needs no reference model.
        kl: the estimate, `k2` or `k3`.
    """

    def __init__(
        self,
        views_per_block: int = 2,
        complementary: bool = True,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        length_normalized: bool = True,
        kl_coef: float = 0.0,
        kl: KL = "k2",
    ) -> None:
        super().__init__(views_per_block, complementary)
        check_option(0 <= clip_low <= 1, "clip_low", clip_low, "use a number in [0, 1]")
        check_option(0 <= clip_high < math.inf, "clip_high", clip_high, "use a finite number that is not negative")
        check_option(0 <= kl_coef < math.inf, "kl_coef", kl_coef, "use a finite number that is not negative")
        check_option(kl in ("k2", "k3"), "kl", kl, "use k2 or k3")
        self.clip_low, self.clip_high = clip_low, clip_high
        self.length_normalized, self.kl_coef, self.kl = length_normalized, kl_coef, kl

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def scaled_by_advantages(self) -> bool:  # type: ignore[override]
        """Without a KL term."""
        return self.kl_coef == 0

    def needs_sums(self, moved: bool) -> bool:
        return True

    def sums_need_scores(self, moved: bool) -> bool:
        """While the policy has not moved every ratio is 1; what is left is the number of scored positions."""
        return moved or self.needs_reference

    def summands(self, row: ScoredRow) -> Mapping[str, Float[Tensor, " N"]]:
        found = {
            "log_ratio": row.weights * (row.logprobs - row.old_logprobs),
            "scored": torch.ones_like(row.logprobs),
        }
        if self.needs_reference:
            found["beyond_reference"] = row.weights * (row.logprobs - row.columns["reference_logprobs"])
        return found

    def loss(self, row: ScoredRow) -> RowLoss:
        """Each scored position has an even share of its response's value, and its own part of the gradient."""
        scored = row.sums["scored"]
        along = scored * row.weights * (row.logprobs - row.logprobs.detach())  # 0; its share has the gradient of L
        length = row.columns["length"] if self.length_normalized else torch.ones_like(scored)
        log_ratio, none = (row.sums["log_ratio"] + along) / length, torch.zeros_like(scored)
        bounds = (self.clip_low, self.clip_high)
        surrogate, ratio, clipped = clipped_surrogate(log_ratio, none, row.columns["advantages"], *bounds)
        total = -(surrogate / scored).sum()
        sums = {"ratio": ratio.sum(), "clip_fraction": clipped.float().sum(), "bounded": bounded(log_ratio)}
        if self.needs_reference:
            beyond = row.sums["beyond_reference"] + along
            kl = (beyond.square() / 2 if self.kl == "k2" else k3(beyond, none)) / length
            sums["reference_kl"] = kl.detach().sum()
            total = total + self.kl_coef * (kl / scored).sum()
        return RowLoss(total, sums)
