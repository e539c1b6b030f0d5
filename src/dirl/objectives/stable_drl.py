"""StableDRL: SPG with importance weights that are clipped, whatever the advantage, and normalised by their sum."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dirl.objectives.base import RowLoss
from dirl.objectives.policy_gradient import check_option
from dirl.objectives.scored import ScoredRow
from dirl.objectives.spg import SPG
from dirl.types import Trajectory


class StableDRL(SPG):
    """- sum_i w_i A_i l_i / sum_i w_i over an optimizer step, with w = clip(exp((L - L_old) / T)) (arXiv:2603.06743).

    L is the lower bound's estimate of a response of T tokens, l what `SPG` makes of it, over T. The weights are
    constants; their clip, unlike that of PPO, spares no response, and their sum over all ranks is what the loss is
    divided by. The published code bounds the weights above alone, by 5, normalises over a batch of one process, and
    draws masks for L_old of its own; here old and current policy see the same. Its paper clips to 1 - eps and 1 + eps.

    Args:
        weight_low: a weight is clipped below at this.
        weight_high: and above at this.
        mix: omega, share of the upper bound for bad responses.
        beta: exponent of the upper bound, 1 or more.
        views_per_block: mask sets of each block.
        complementary: they come in pairs, of which one masks what the other shows.
    """

    needs_old = True
    needs_totals = True

    def __init__(
        self,
        weight_low: float = 0.0,
        weight_high: float = 5.0,
        mix: float = 0.5,
        beta: float = 1.5,
        views_per_block: int = 2,
        complementary: bool = False,
    ) -> None:
        super().__init__(mix, beta, views_per_block, complementary)
        check_option(0 <= weight_low <= 1, "weight_low", weight_low, "use a number in [0, 1]")
        check_option(1 <= weight_high < math.inf, "weight_high", weight_high, "use a finite number of at least 1")
        self.weight_low, self.weight_high = weight_low, weight_high

    def divisor(self, trajectories: Sequence[Trajectory], scored: int, max_response_tokens: int) -> float:
        """What `scale` multiplies by, so that the sum of the weights is left."""
        return float(len(trajectories))

    def summands(self, row: ScoredRow) -> Mapping[str, Float[Tensor, " N"]]:
        log_ratio = row.weights * (row.logprobs - row.old_logprobs) / row.columns["length"]
        return {"log_ratio": log_ratio, "scored": torch.ones_like(log_ratio)}

    def totals(self, sums: Mapping[str, Float[Tensor, " J"]]) -> Mapping[str, Float[Tensor, ""]]:
        shown = sums["scored"] > 0
        return {"weight": (self._weight(sums["log_ratio"]) * shown).sum(), "responses": shown.double().sum()}

    def scale(self, row: ScoredRow) -> Float[Tensor, " N"]:
        weight = self._weight(row.sums["log_ratio"]) / row.columns["length"]
        if not row.totals:  # a row by itself
            return weight
        return weight * (row.totals["responses"] / row.totals["weight"]).to(weight)

    def loss(self, row: ScoredRow) -> RowLoss:
        total, sums = super().loss(row)
        weight = self._weight(row.sums["log_ratio"])
        raw = row.sums["log_ratio"].exp()
        return RowLoss(total, {**sums, "ratio": raw.sum(), "clip_fraction": (weight != raw).float().sum()})

    def _weight(self, log_ratio: Tensor) -> Tensor:
        # the bound is met before exp can overflow
        return log_ratio.clamp(max=math.log(self.weight_high)).exp().clamp(min=self.weight_low)
