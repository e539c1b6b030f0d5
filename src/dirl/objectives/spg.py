"""SPG: good responses by a lower bound of their likelihood, bad ones by a mixture with an upper bound."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dirl.losses.policy import LOG_FLOOR
from dirl.objectives.base import RowLoss
from dirl.objectives.bounds import LikelihoodBound
from dirl.objectives.policy_gradient import check_option
from dirl.objectives.scored import ScoredRow
from dirl.types import Trajectory


class SPG(LikelihoodBound):
    """Sandwiched policy gradient (arXiv:2510.09541): what is bad is pushed down by a bound that is above it.

    With n mask sets z of a block and the weights w of the lower bound (`dirl.diffusion.mask_sets`)

        lower = mean over z of sum_{k masked} w log p(y_k | z)
        upper = 1 / beta sum_k log (mean over z of w [k masked] p(y_k | z)^beta)
        loss  = - sum_i A_i (lower_i if A_i > 0, else mix upper_i + (1 - mix) lower_i) / tokens of all responses

    without ratio, clip or KL. A token that no set masks is in no upper bound. Beta tells sets apart that mask the same
    token: with one pair of complements, which share out the tokens, it does not matter. The published code has means
    over masked tokens for the weighted sums, masks whole later blocks and some of the prompt too; the sums are the
    paper's, the divisor is the code's.

    Args:
        mix: omega, share of the upper bound for bad responses.
        beta: exponent of the upper bound, 1 or more.
        views_per_block: mask sets of each block.
        complementary: they come in pairs, of which one masks what the other shows.
    """

    needs_old = False
    scaled_by_advantages = True

    def __init__(
        self, mix: float = 0.5, beta: float = 1.5, views_per_block: int = 2, complementary: bool = False
    ) -> None:
        super().__init__(views_per_block, complementary)
        check_option(0 <= mix <= 1, "mix", mix, "use a number in [0, 1]")
        check_option(1 <= beta < math.inf, "beta", beta, "use a finite number of at least 1")
        self.mix, self.beta = mix, beta

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        index = [float(i) for i in range(len(trajectory.response_ids))]
        return {**super().columns(trajectory), "response_index": index}

    def divisor(self, trajectories: Sequence[Trajectory], scored: int, max_response_tokens: int) -> float:
        return float(sum(len(t.response_ids) for t in trajectories))

    def needs_sums(self, moved: bool) -> bool:
        return True

    def token_summands(self, row: ScoredRow) -> Mapping[str, Float[Tensor, " N"]]:
        return {"upper": self._raised(row), "draws": torch.ones_like(row.logprobs)}

    def loss(self, row: ScoredRow) -> RowLoss:
        """Each draw of a token has an even share of its upper bound's value, and its own part of the gradient."""
        advantages, along = row.columns["advantages"], row.logprobs - row.logprobs.detach()
        lower = row.weights * row.logprobs
        upper = row.sums["upper"].log() / (self.beta * row.sums["draws"])
        upper = upper + self._raised(row) / row.sums["upper"] * along
        bound = torch.where(advantages > 0, lower, self.mix * upper + (1 - self.mix) * lower)
        sums = {"lower": lower.detach().sum(), "upper": upper.detach().sum()}
        return RowLoss(-(self.scale(row) * advantages * bound).sum(), sums)

    def scale(self, row: ScoredRow) -> Float[Tensor, " N"]:
        """[N] weight of each position's response in the loss, without gradient."""
        return torch.ones_like(row.weights)

    def _raised(self, row: ScoredRow) -> Tensor:
        """[N] w p^beta; a p below e^LOG_FLOOR, which single precision might lose, counts as that."""
        return row.weights * (self.beta * row.logprobs.detach().clamp(min=LOG_FLOOR)).exp()
