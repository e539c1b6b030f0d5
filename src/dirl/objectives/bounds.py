"""What objectives that estimate the likelihood of a whole response have in common: mask sets and their weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from dirl.diffusion.mask_sets import bound_views
from dirl.diffusion.views import Views
from dirl.objectives.base import Objective
from dirl.objectives.policy_gradient import check_option
from dirl.types import DecodingParams, ModelSpec, Trajectory


class LikelihoodBound(Objective):
    """Views whose weighted log-probs add up to an estimate of the response's ELBO (`dirl.diffusion.mask_sets`).

    The draws are part of the rollout: all policies and passes see the same. The loss is a mean over trajectories.

    Args:
        views_per_block: mask sets of each block.
        complementary: they come in pairs, of which one masks what the other shows.
    """

    def __init__(self, views_per_block: int, complementary: bool) -> None:
        check_option(views_per_block >= 1, "views_per_block", views_per_block, "use at least 1")
        if complementary and views_per_block % 2:
            raise ValueError(
                f"objective.views_per_block={views_per_block} with objective.complementary=true: pairs need an even "
                "number; use one, or complementary=false"
            )
        self.views_per_block, self.complementary = views_per_block, complementary

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        return (
            f"objective {type(self).__name__} estimates likelihoods at masks of its own, which the older policy, whose "
            "log-probs are those of its denoising steps, has not said anything of: there is no importance weight; "
            "sample with the weights that learn, or use objective DiPO with importance_cap"
        )

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        return bound_views(trajectory, spec, rng, self.views_per_block, self.complementary)

    def weights(self, trajectory: Trajectory, views: Views) -> float | np.ndarray:
        assert views.weights is not None, "views of a bound have weights"
        return views.weights

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        advantage = 0.0 if trajectory.advantage is None else trajectory.advantage
        return {"advantages": advantage, "length": float(len(trajectory.response_ids))}

    def divisor(self, trajectories: Sequence[Trajectory], scored: int, max_response_tokens: int) -> float:
        return float(len(trajectories))

    def planned_views(self, denoising_steps: float) -> float:
        """The most views that there can be: a complement that masks nothing is left out."""
        return float(self.views_per_block)

    def planned_scorings(self) -> float:
        """Half of a block, or a little more where no set is empty."""
        return self.views_per_block / 2
