"""Leftmost: tokens are committed one by one from the left, so the sum of their log-probs is the exact likelihood."""

import numpy as np

from dirl.batches import IGNORE
from dirl.diffusion.views import Views
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import KL, PolicyGradient, Ratio
from dirl.objectives.subsets import ViewChoice
from dirl.types import DecodingParams, ModelSpec, Trajectory


class Leftmost(PolicyGradient):
    """The loss of DiPO on trajectories decoded from left to right, one token a step (JustGRPO, arXiv:2601.15165).

    No choice of positions depends on what is drawn, so a trajectory's probability is the product of its tokens', each
    given all tokens before it and the masks of the rest of its block: the gradient is exact, at B views a block.
    JustGRPO's model has no blocks and sees the masks of the whole response.

    Args:
        ratio: `token`, `sequence` (GSPO), `cispo` or `none` (REINFORCE); see `dirl.objectives.PolicyGradient`.
        clip_low: the ratio r is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        kl_coef: weight of the estimate of KL(policy || reference); 0 needs no reference model.
        kl: the estimate, `k2` or `k3`.
        importance_cap: C of the truncated importance weight min(exp(old - behaviour), C), for engine/trainer mismatch
            and samples of older weights; None: no weight.
        normalization: `token` divides by the scored tokens of the optimizer step (DAPO), `sequence` means
            over each trajectory, then over trajectories (GRPO), `constant` divides by trajectories *
            max_response_tokens (Dr. GRPO, and JustGRPO).
        view_fraction: random part of a step's views that is learned from, with the same expectation.
        view_choice: `uniform`, or `weighted` by |advantage| times surprise.
        trajectory_fraction: random part of each group that is learned from, with the same expectation.
    """

    def __init__(
        self,
        ratio: Ratio = "token",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.0,
        kl: KL = "k3",
        importance_cap: float | None = None,
        normalization: Normalization = "constant",
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
