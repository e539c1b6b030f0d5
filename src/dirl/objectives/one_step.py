"""One-step: every token is scored where all of its block is masked."""

import numpy as np

from dirl.diffusion.views import Views, full_views
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import KL, PolicyGradient, Ratio
from dirl.objectives.subsets import ViewChoice
from dirl.types import ModelSpec, Trajectory


class OneStep(PolicyGradient):
    """The clipped policy gradient of each token given all blocks before its own, which is masked whole.

    diffu-GRPO (d1, arXiv:2504.12216) for block diffusion: the cheapest, one view a block whatever the decoding. It
    scores tokens as if all of a block were committed at once; where they are not, its gradient is biased. d1's model
    has no blocks: it masks the whole response at once, and 15 % of the prompt too, which is left out here.

    Args:
        ratio: `token`, `sequence` (GSPO), `cispo` or `none` (REINFORCE); see `dirl.objectives.PolicyGradient`.
        clip_low: the ratio r is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the estimate of KL(policy || reference), at the same views; 0 needs no reference model.
        kl: the estimate, `k2` or `k3`.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO, and d1), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO).
        view_fraction: random part of a step's views that is learned from, with the same expectation.
        view_choice: `uniform`, or `weighted` by |advantage| times surprise.
        trajectory_fraction: random part of each group that is learned from, with the same expectation.
    """

    at_the_draw = False

    def __init__(
        self,
        ratio: Ratio = "token",
        clip_low: float = 0.5,
        clip_high: float = 0.5,
        kl_coef: float = 0.0,
        kl: KL = "k3",
        normalization: Normalization = "token",
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
            None,
            normalization,
            view_fraction,
            view_choice,
            trajectory_fraction,
        )

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        return full_views(trajectory, spec.block_size, spec.mask_token_id)

    def planned_views(self, denoising_steps: float) -> float:
        return 1.0
