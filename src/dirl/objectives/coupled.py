"""Coupled: every token is scored once by a pair of views, of which one masks what the other shows."""

from typing import Any

import numpy as np

from dirl.diffusion.views import Views, complementary_views
from dirl.objectives.policy_gradient import PolicyGradient, check_option
from dirl.types import ModelSpec, Trajectory


class Coupled(PolicyGradient):
    """The clipped policy gradient of each token where it, with a random part of its block, is masked.

    coupled-GRPO (DiffuCoder, arXiv:2506.20639) for block diffusion: of each block a random set of positions and its
    complement are masked in turn, the same for all policies, so a pair of views scores every token once, with some of
    its block to see. As with `OneStep` it is not the distribution that tokens were drawn from, and the gradient is
    biased. What is our choice: the rate of masking is drawn for each block, not for the batch, and the ratio is one of
    probabilities. The published code adds a third view, all masked, weighs the pair's log-probs by one over the rate,
    and takes the mean of the two for a log-probability, so that its ratio is about ours to the power of 1.5.

    Further options are those of `dirl.objectives.PolicyGradient`.

    Args:
        pairs: of views of each block.
        rate_low: the first view of a pair masks each position with a probability drawn between this one
        rate_high: and this one, in (0, 1).
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
    """

    at_the_draw = False

    def __init__(
        self,
        pairs: int = 1,
        rate_low: float = 0.2,
        rate_high: float = 0.8,
        clip_low: float = 0.5,
        clip_high: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, importance_cap=None, **options)
        check_option(pairs >= 1, "pairs", pairs, "use at least 1")
        check_option(0 < rate_low < 1, "rate_low", rate_low, "use a probability in (0, 1)")
        check_option(0 < rate_high < 1, "rate_high", rate_high, "use a probability in (0, 1)")
        if rate_low > rate_high:
            raise ValueError(f"objective.rate_low={rate_low!r} is above objective.rate_high={rate_high!r}: swap them")
        self.pairs, self.rates = pairs, (rate_low, rate_high)

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        return complementary_views(trajectory, spec.block_size, spec.mask_token_id, rng, self.rates, self.pairs)

    def weights(self, trajectory: Trajectory, views: Views) -> float | np.ndarray:
        """The divisor of `token` counts each token as often as it is scored, those of the others once."""
        once = super().weights(trajectory, views)
        return once if self.normalization == "token" else once / self.pairs

    def planned_views(self, denoising_steps: float) -> float:
        return 2.0 * self.pairs

    def planned_scorings(self) -> float:
        return float(self.pairs)
