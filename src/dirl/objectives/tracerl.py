"""TraceRL: the tokens of several denoising steps are scored at once, at the state before the first of them."""

from typing import Any, Literal

import numpy as np

from dirl.advantages.gae import GAE, Outcome
from dirl.batches import IGNORE
from dirl.diffusion.views import Views, merged, step_views
from dirl.losses.policy import bounded, k2, k3
from dirl.objectives.base import RowLoss
from dirl.objectives.normalization import Normalization
from dirl.objectives.policy_gradient import PolicyGradient, check_option
from dirl.objectives.scored import ScoredRow
from dirl.types import DecodingParams, ModelSpec, Trajectory

Anchor = Literal["old", "reference"]


class TraceRL(PolicyGradient):
    """The clipped policy gradient along the trace, with a mean over each (merged) step (arXiv:2509.06949, eq. 3).

    Steps 1 to s of a block's trace are one, s + 1 to 2 s the next one, and so on, for `shrink` s. The tokens of such a
    step are scored at the state before the first of them, so a block of n denoising steps has ceil(n / s) views. For a
    trajectory with T steps tau(t) in all its blocks

        J = sum_t 1 / |tau(t)| sum_{o in tau(t)} min(r_o A, clip(r_o, 1 - low, 1 + high) A) - beta KL

    where the KL is that of policy and old policy. The equation has the sum over the steps; its divisor is our choice:
    T of each trajectory, then the trajectories (`normalization: sequence`), or a constant (`constant`), which is the
    equation up to a factor. The published code has no mean over a step, it divides the sum over the tokens by a
    constant: `step_mean: false` with `constant`. With shrink 1, `step_mean: false` and no KL this is DiPO.

    With `value: true` A is each token's own, by GAE over the (merged) steps in the order of the trace, from a value
    model that learns beside the policy (section 4.2 and eq. 4 there, see `dirl.advantages.gae`). It says of each token,
    at the view in which it is scored, which outcome is to be expected. A trajectory weighs in its loss as it does in
    the policy's, with all its tokens the same: with `sequence` that is eq. 4.

    Further options are those of `dirl.objectives.PolicyGradient`.

    Args:
        shrink: denoising steps of a block that are merged into one view. The tokens are then scored at another state
            than they were drawn at, so above 1 there is no `importance_cap`.
        step_mean: mean over the tokens of each step; false: each token counts the same.
        clip_high: the ratio is clipped above at 1 + clip_high.
        kl_coef: beta, weight of the estimate of KL(policy || anchor), which is averaged as the objective is.
        kl_anchor: `old`, the policy that begins the epoch, which takes no memory and acts from the second step of a
            rollout on; or `reference`, a frozen model, as in LightningRL.
        normalization: of the steps, or of the tokens with `step_mean: false`: `sequence` means over each trajectory,
            then over trajectories, `constant` divides by trajectories * max_response_tokens, `token` (only with
            `step_mean: false`) by the scored tokens of the optimizer step.
        value: each token's advantage comes from a value model, for which `model.init_args.value` has the options.
        gamma: with `value`, the discount of a denoising step.
        lam: with `value`, lambda: 1 takes each advantage from the outcome, 0 from the next step's value.
        value_clip: with `value`, how far a value may move within an epoch before its loss is constant; None: no bound.
        outcome: with `value`, what is predicted: the group's `advantage` (as in the paper's code, whose rewards are
            z-scores), or the `reward`.
    """

    scaled_by_advantages = PolicyGradient.scaled_by_advantages

    def __init__(
        self,
        shrink: int = 1,
        step_mean: bool = True,
        clip_high: float = 0.2,
        kl_coef: float = 0.01,
        kl_anchor: Anchor = "old",
        normalization: Normalization = "sequence",
        value: bool = False,
        gamma: float = 1.0,
        lam: float = 1.0,
        value_clip: float | None = 0.2,
        outcome: Outcome = "advantage",
        **options: Any,
    ) -> None:
        super().__init__(clip_high=clip_high, kl_coef=kl_coef, normalization=normalization, **options)
        check_option(shrink >= 1, "shrink", shrink, "use 1, which merges nothing, or more")
        check_option(kl_anchor in ("old", "reference"), "kl_anchor", kl_anchor, "use old or reference")
        if self.importance_cap is not None and shrink > 1:
            raise ValueError(
                f"objective.importance_cap={self.importance_cap:g} compares old and behaviour policy where a token "
                f"was drawn, and objective.shrink={shrink} scores it at an earlier one: use shrink=1 or "
                "importance_cap=null"
            )
        if step_mean and normalization == "token":
            raise ValueError(
                "objective.normalization=token divides by tokens, and objective.step_mean=true counts steps: use "
                "normalization=sequence or constant, or step_mean=false"
            )
        self.shrink, self.step_mean, self.kl_anchor = shrink, step_mean, kl_anchor
        self.at_the_draw = shrink == 1
        gae = GAE(gamma, lam, value_clip, outcome)
        self.gae = gae if value else None

    @property
    def needs_reference(self) -> bool:
        return super().needs_reference and self.kl_anchor == "reference"

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        if self.shrink > 1:
            return (
                f"objective.shrink={self.shrink} scores tokens at other states than the older policy drew them at: use "
                "shrink=1, with an importance_cap"
            )
        return super().refuses_stale(decoding)

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        return merged(step_views(trajectory, spec.block_size, spec.mask_token_id), self.shrink)

    def weights(self, trajectory: Trajectory, views: Views) -> float | np.ndarray:
        if not self.step_mean:
            return super().weights(trajectory, views)
        each = 1 / (views.targets != IGNORE).sum(1, keepdims=True)
        return each / len(views) if self.normalization == "sequence" else each

    def planned_views(self, denoising_steps: float) -> float:
        """Between whole numbers of steps, as the mean of a mixture of the two."""
        below = denoising_steps // 1
        fewer, more = (-(-steps // self.shrink) for steps in (below, below + 1))
        return fewer + (denoising_steps - below) * (more - fewer)

    def loss(self, row: ScoredRow) -> RowLoss:
        total, sums = super().loss(row)
        if self.kl_coef > 0 and self.kl_anchor == "old":
            kl = (k2 if self.kl == "k2" else k3)(row.logprobs, row.old_logprobs)
            sums["old_kl"] = kl.detach().sum()
            sums["bounded"] = sums["bounded"] + bounded(row.old_logprobs - row.logprobs)
            total = total + self.kl_coef * (kl * row.weights).sum()
        return RowLoss(total, sums)
