"""wd1: a weighted log-likelihood, whose weights are the softmax of a group's advantages (arXiv:2507.08838)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dirl.diffusion.views import Views, full_views, step_views
from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.bounds import LikelihoodBound
from dirl.objectives.policy_gradient import check_option
from dirl.objectives.scored import ScoredRow
from dirl.types import DecodingParams, ModelSpec, Trajectory

Estimate = Literal["elbo", "trace", "one_step"]


class WD1(LikelihoodBound):
    """- sum of softmax(A) log p + sum of softmax(-A) log p over each group: good responses up, bad ones down.

    Both sets of weights add up to 1 in a group and are constants, so there is no ratio, clip, KL or old policy; equals
    cancel. log p is the sum over a response's tokens, and the loss a mean over groups. The paper has A = reward - mean,
    which is `rollout.advantage: {class_path: dirl.advantages.Mean}`, and log p where all of the response is masked.

    Args:
        estimate: of log p. `elbo`: its lower bound, at random masks; `trace`: the sum over the denoising steps, as in
            DiPO; `one_step`: each token where all of its block is masked, the nearest to the paper.
        views_per_block: mask sets of each block, for `elbo`.
        complementary: they come in pairs, of which one masks what the other shows.
    """

    needs_old = False
    scaled_by_advantages = True

    def __init__(self, estimate: Estimate = "elbo", views_per_block: int = 2, complementary: bool = True) -> None:
        super().__init__(views_per_block, complementary)
        known = estimate in ("elbo", "trace", "one_step")
        check_option(known, "estimate", estimate, "use elbo, trace or one_step")
        self.estimate = estimate

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        return (Objective if self.estimate == "trace" else LikelihoodBound).refuses_stale(self, decoding)

    def of_group(self, group: Sequence[Trajectory]) -> Sequence[Trajectory]:
        advantages = np.array([t.advantage or 0.0 for t in group])
        weights = softmax(advantages) - softmax(-advantages)
        return [dataclasses.replace(t, advantage=float(w)) for t, w in zip(group, weights, strict=True)]

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        if self.estimate == "elbo":
            return super().views(trajectory, spec, rng)
        return (step_views if self.estimate == "trace" else full_views)(trajectory, spec.block_size, spec.mask_token_id)

    def weights(self, trajectory: Trajectory, views: Views) -> float | np.ndarray:
        return 1.0 if views.weights is None else views.weights

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        assert trajectory.advantage is not None, "`of_group` gives all of them one"
        return {"advantages": trajectory.advantage}

    def divisor(self, trajectories: Sequence[Trajectory], scored: int, max_response_tokens: int) -> float:
        return float(len({t.prompt_id for t in trajectories}))

    def loss(self, row: ScoredRow) -> RowLoss:
        weight = row.columns["advantages"]
        return RowLoss(-(weight * row.weights * row.logprobs).sum(), {"weight_abs": weight.abs().sum()})

    def planned_views(self, denoising_steps: float) -> float:
        return {"elbo": super().planned_views(denoising_steps), "trace": denoising_steps, "one_step": 1.0}[
            self.estimate
        ]

    def planned_scorings(self) -> float:
        return super().planned_scorings() if self.estimate == "elbo" else 1.0


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max())
    return raised / raised.sum()
