"""One-step: every token is scored where all of its block is masked."""

from typing import Any

import numpy as np

from dirl.diffusion.views import Views, full_views
from dirl.objectives.policy_gradient import PolicyGradient
from dirl.types import ModelSpec, Trajectory


class OneStep(PolicyGradient):
    """The clipped policy gradient of each token given all blocks before its own, which is masked whole.

    diffu-GRPO (d1, arXiv:2504.12216) for block diffusion: the cheapest, one view a block whatever the decoding. It
    scores tokens as if all of a block were committed at once; where they are not, its gradient is biased. d1's model
    has no blocks: it masks the whole response at once, and 15 % of the prompt too, which is left out here.

    Further options are those of `dirl.objectives.PolicyGradient`.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
    """

    at_the_draw = False

    def __init__(self, clip_low: float = 0.5, clip_high: float = 0.5, **options: Any) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, importance_cap=None, **options)

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        return full_views(trajectory, spec.block_size, spec.mask_token_id)

    def planned_views(self, denoising_steps: float) -> float:
        return 1.0
