"""Leftmost: tokens are committed one by one from the left, so the sum of their log-probs is the exact likelihood."""

from typing import Any

import numpy as np

from dirl.batches import IGNORE
from dirl.diffusion.views import Views
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import PolicyGradient
from dirl.types import DecodingParams, ModelSpec, Trajectory


class Leftmost(PolicyGradient):
    """The loss of DiPO on trajectories decoded from left to right, one token a step (JustGRPO, arXiv:2601.15165).

    No choice of positions depends on what is drawn, so a trajectory's probability is the product of its tokens', each
    given all tokens before it and the masks of the rest of its block: the gradient is exact, at B views a block.
    JustGRPO's model has no blocks and sees the masks of the whole response.

    Further options are those of `dirl.objectives.PolicyGradient`.

    Args:
        clip_high: the ratio is clipped above at 1 + clip_high.
        normalization: `token`, `sequence` or `constant` (JustGRPO's).
    """

    def __init__(self, clip_high: float = 0.2, normalization: Normalization = "constant", **options: Any) -> None:
        super().__init__(clip_high=clip_high, normalization=normalization, **options)

    def check(self, decoding: DecodingParams) -> None:
        super().check(decoding)
        if decoding.strategy != "sequential":
            named = f"model.decoding.strategy={decoding.strategy}"
            if decoding.strategy == "low_confidence_dynamic":
                named += f" (with model.decoding.threshold={decoding.threshold:g})"
            raise ValueError(
                f"{named} commits positions by confidence, and objective Leftmost needs them from the left: use "
                "model.decoding.strategy=sequential, or objective DiPO"
            )
        if decoding.denoising_steps is not None:
            raise ValueError(
                f"model.decoding.denoising_steps={decoding.denoising_steps} may commit several tokens a step, and "
                "objective Leftmost needs one: use null, which is one token a step, or objective DiPO"
            )

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        views = super().views(trajectory, spec, rng)
        scored = views.response_index[views.targets != IGNORE]
        if len(scored) > len(views) or (np.diff(scored) < 0).any():
            raise ValueError(
                f"trajectory {trajectory.prompt_id}#{trajectory.sample_index}: was not decoded from left to right, one "
                "token a step, which objective Leftmost learns from: sample with model.decoding.strategy=sequential, "
                "or use objective DiPO"
            )
        return views
