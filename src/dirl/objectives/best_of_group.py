"""Best of group: supervised fine-tuning on the right answers that the policy sampled itself."""

from collections.abc import Mapping, Sequence

import numpy as np

from dirl.diffusion.noise import NoiseConfig, noise
from dirl.diffusion.views import Views, in_blocks, masked_views
from dirl.objectives.base import Objective, RowLoss
from dirl.objectives.scored import ScoredRow
from dirl.types import DecodingParams, ModelSpec, Trajectory


class BestOfGroup(Objective):
    """The loss of SFT (DiRL, arXiv:2512.22234, eq. 3) on the right answers of each group: what RL must beat.

    Rejection sampling and fine-tuning, round by round: the blocks of right answers are masked as SFT masks them, with a
    rate t of each block, and

        L = - sum_{masked i} log p(y_i | view) / t / (tokens of the right answers).

    Wrong answers and advantages are not looked at. Every position of a decoded block is learned, the tail after the
    stop token as it was sampled included. A step without a right answer is skipped (`train/empty_steps`). Log-probs are
    those of the decoding's temperature; at 1 they are SFT's. Samples of older weights are as good as any.

    Args:
        noise: as in SFT; see `dirl.diffusion.noise.NoiseConfig`.
    """

    needs_old = needs_advantages = False

    def __init__(self, noise: NoiseConfig = NoiseConfig()) -> None:  # noqa: B008 - frozen
        self.noise = noise

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        return None

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        if not right(trajectory):
            return super().views(trajectory, spec, rng)[:0]
        _, _, index = in_blocks(trajectory, spec.block_size)
        masked, weights = (drawn.swapaxes(0, 1) for drawn in noise(index >= 0, self.noise, rng))
        return masked_views(trajectory, spec.block_size, spec.mask_token_id, masked, weights)

    def weights(self, trajectory: Trajectory, views: Views) -> float | np.ndarray:
        return 1.0 if views.weights is None else views.weights

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        return {}

    def divisor(self, trajectories: Sequence[Trajectory], scored: int, max_response_tokens: int) -> float:
        return float(sum(len(t.response_ids) for t in trajectories if right(t)))

    def loss(self, row: ScoredRow) -> RowLoss:
        return RowLoss(-(row.weights * row.logprobs).sum(), {"nll": -row.logprobs.detach().sum()})

    def planned_views(self, denoising_steps: float) -> float:
        """The number of views as if all answers were right."""
        return float(self.noise.views_per_block)

    def planned_scorings(self) -> float:
        masked = 0.5 if self.noise.complementary else (self.noise.t_min + self.noise.t_max) / 2
        return self.noise.views_per_block * masked


def right(trajectory: Trajectory) -> bool:
    """Whether the trajectory is right; ValueError if nothing has judged it."""
    if trajectory.correct is None:
        raise ValueError(
            f"trajectory {trajectory.prompt_id}#{trajectory.sample_index}: nothing says whether it is right, which the "
            "objective asks of it: sample it anew with a reward that judges"
        )
    return trajectory.correct
