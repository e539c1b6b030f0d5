"""The contract of objectives: which copies of a response the model sees, and the loss of what it says of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dirl.advantages.gae import GAE
from dirl.diffusion.views import Views, step_views
from dirl.objectives.normalization import Normalization, step_divisor, token_weight
from dirl.objectives.scored import ScoredRow
from dirl.objectives.subsets import EVERYTHING, Subset
from dirl.types import DecodingParams, Likelihood, ModelSpec, Trajectory


class RowLoss(NamedTuple):
    """The loss of one packed row, and what is logged of it."""

    loss: Float[Tensor, ""]
    """Not yet divided: the step's loss is the sum over all rows of all ranks, over the divisor."""
    sums: dict[str, Float[Tensor, ""]]
    """For the log, by name: sums over the scored positions, whose means become `train/NAME`; for every row the same."""


class Objective(ABC):
    """What an optimizer step of RL learns from trajectories with advantages.

    For each trajectory of a rollout it says what the model is shown (`views`: copies of the response's blocks, each
    with some positions masked and some scored; by default what the engine's denoising steps saw), how the scored tokens
    weigh (`weights`), and what is to be remembered of each (`columns`). All of it is packed once for the rollout, so
    every pass and policy sees the same views. Then `loss` is asked for each packed row, of which it sees the scored
    positions as flat tensors (`ScoredRow`); a sequence in several rows has one `trajectory_ids` in all of them. One
    that needs a number of a whole sequence names it in `summands`, and finds its sum in `ScoredRow.sums`; of a token
    that several views score, in `token_summands`.

    A subclass is chosen by `objective: {class_path: ..., init_args: ...}`; what its constructor takes are its options.
    One of ten lines, REINFORCE without a clip, is in docs/extending.md.
    """

    normalization: Normalization = "token"
    likelihood: Likelihood = "tokens"
    """`trajectory` also scores the positions that a denoising step left masked (`ScoredRow.rejected`)."""
    subset: Subset = EVERYTHING
    """The part of a step's views and trajectories that it learns from."""

    needs_old = True
    """Whether `loss` looks at `ScoredRow.old_logprobs`, which the old policy fills in before it moves."""

    needs_advantages = True
    """Whether a group whose trajectories all have advantage 0 teaches nothing."""

    scaled_by_advantages: bool = False
    """Whether all that a trajectory adds to the loss is in proportion to its advantages (the column `advantages`).

    One of which they are all 0 is then left out of the step, whose loss and gradient stay what they are. A subclass
    with a `loss` or `surrogate` of its own says it anew."""

    gae: GAE | None = None
    """How the advantage of each token comes from a value model; None: it is the group's, for all tokens."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "scaled_by_advantages" not in vars(cls) and vars(cls).keys() & {"loss", "surrogate"}:
            cls.scaled_by_advantages = False

    @property
    def needs_values(self) -> bool:
        """Whether a value model learns beside the policy. The column `advantages` is then each token's own."""
        return self.gae is not None

    @property
    def needs_reference(self) -> bool:
        """Whether the row's columns must hold `reference_logprobs`, for which a frozen model is kept."""
        return False

    @abstractmethod
    def loss(self, row: ScoredRow) -> RowLoss:
        """The sum over the row's scored positions, to be divided by `divisor`."""

    def check(self, decoding: DecodingParams) -> None:  # noqa: B027 - most learn from whatever is decoded
        """ValueError, which names both settings, if what is so decoded cannot be learned from."""

    def of_group(self, group: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """The trajectories of one prompt as they are learned from, e.g. with weights for advantages; all that follows
        sees these."""
        return group

    def views(self, trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator) -> Views:
        """What the model is shown of a trajectory; `rng` is seeded by run, epoch and trajectory."""
        return step_views(trajectory, spec.block_size, spec.mask_token_id)

    def weights(self, trajectory: Trajectory, views: Views) -> float | np.ndarray:
        """Weights of the scored tokens in the loss: one for all of them, or [V, B]."""
        return token_weight(self.normalization, trajectory)

    def columns(self, trajectory: Trajectory) -> Mapping[str, float | Sequence[float]]:
        """Columns by name: one number for the trajectory or one for each of its `response_ids`."""
        advantage = 0.0 if trajectory.advantage is None else trajectory.advantage
        outcomes = {} if self.gae is None else {"outcomes": self.gae.outcome_of(trajectory)}
        return {"advantages": advantage, "behaviour_logprobs": trajectory.behaviour_logprobs, **outcomes}

    def needs_sums(self, moved: bool) -> bool:
        """Whether `loss` looks at `ScoredRow.sums`.

        Args:
            moved: the policy is no longer the old one, so the ratio between them is not 1.
        """
        return False

    def sums_need_scores(self, moved: bool) -> bool:
        """Whether `summands` and `token_summands` depend on log-probs; if not, they are summed without a forward.

        Args:
            moved: as in `needs_sums`. Where it has not, `old_logprobs` are `logprobs`.
        """
        return True

    def summands(self, row: ScoredRow) -> Mapping[str, Float[Tensor, " N"]]:
        """[N] each, by name: what is summed over all scored positions of a trajectory, in whichever rows they lie."""
        return {}

    def token_summands(self, row: ScoredRow) -> Mapping[str, Float[Tensor, " N"]]:
        """[N] each, by name: what is summed over all views that score the same token of a trajectory.

        Tokens are told apart by a column `response_index`, their index in `response_ids`.
        """
        return {}

    needs_totals = False
    """Whether `loss` looks at `ScoredRow.totals`, for which every row of a step is scored once more before it."""

    def totals(self, sums: Mapping[str, Float[Tensor, " J"]]) -> Mapping[str, Float[Tensor, ""]]:
        """By name, a number that is summed over the ranks, from this rank's sums, [J] each of its trajectories."""
        return {}

    def divisor(self, trajectories: Sequence[Trajectory], scored: int, max_response_tokens: int) -> float:
        """The divisor of one rank's share of an optimizer step; that of the step is their sum over the ranks.

        Where that is 0 there is nothing to learn from, and the step is skipped.

        Args:
            scored: positions of all views.
        """
        return step_divisor(self.normalization, len(trajectories), scored, max_response_tokens)

    def refuses_stale(self, decoding: DecodingParams) -> str | None:
        """Why samples of older weights cannot be learned from, and what to change; None: they can."""
        return f"objective {type(self).__name__} has no weight for them: sample with the weights that learn"

    def planned_views(self, denoising_steps: float) -> float:
        """Noised views of a block that takes so many denoising steps, for plans; a `subset` is a part of them."""
        return denoising_steps

    def planned_scorings(self) -> float:
        """How often a response token is scored in all of these views together."""
        return 1.0
