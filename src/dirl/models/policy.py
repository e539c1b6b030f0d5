"""The trainer's model: a packed batch in, log-probabilities of its scored positions out, in one forward."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from dirl.attention import build_mask
from dirl.attention.backend import Backend
from dirl.batches import IGNORE, PackedBatch
from dirl.models.families import Parts
from dirl.models.head import selection_factors, target_scores
from dirl.models.tensor_parallel import local_weight
from dirl.types import DecodingParams, Likelihood, ModelSpec


@dataclass(frozen=True)
class Scores:
    """What one forward says of the N scored positions and, for `likelihood: trajectory`, the M rejected ones."""

    positions: Int64[Tensor, " N"]
    """[N] indices into the packed row."""
    logprobs: Float[Tensor, " N"]
    """[N] log-probability of the target, nats, with gradient."""
    entropy: Float[Tensor, " N"]
    """[N] nats, without gradient."""
    factor_positions: Int64[Tensor, " M"]
    """[M] masked positions that their denoising step did not commit; M = 0 without factors."""
    log_factors: Float[Tensor, " M"]
    """[M] log F_j, with gradient."""
    hidden: Float[Tensor, "N D"]
    """[N, D] last hidden states, with gradient."""


@dataclass(frozen=True)
class ScoringPlan:
    """Where the head looks in a packed row. Made on the host, it spares a GPU every question of how many there are."""

    positions: Int64[Tensor, " N"]
    """[N] positions with a target."""
    rejected: Int64[Tensor, " M"]
    """[M] masked positions that their denoising step did not commit; M = 0 without factors."""
    position_views: Int64[Tensor, " _"]
    """[N] which view, counted along the row, a position belongs to; empty if M = 0."""
    rejected_views: Int64[Tensor, " M"]
    """[M] the same."""
    views: int

    def map(self, fn: Callable[[Tensor], Tensor]) -> "ScoringPlan":
        views = fn(self.position_views), fn(self.rejected_views)
        return ScoringPlan(fn(self.positions), fn(self.rejected), *views, self.views)

    def view_weights(self, weights: Float[Tensor, " N"]) -> Float[Tensor, " M"]:
        """Of each rejected position the largest weight of its view's scored tokens (DiPO's are all the same)."""
        largest = weights.new_zeros(self.views).scatter_reduce(0, self.position_views, weights, "amax")
        return largest[self.rejected_views]

    def without_factors(self) -> "ScoringPlan":
        none = self.rejected[:0]
        return ScoringPlan(self.positions, none, none, none, 0)


class BlockDiffusionLM(nn.Module):
    """A transformers backbone under the block mask of a packed row.

    Args:
        backbone: causal LM of a known family, with `attn_implementation="dirl"`.
        spec: block size and token ids.
        attention: auto, flex, segments or dense; see `dirl.attention.build_mask`.
        head_chunk: scored positions that meet the vocabulary at a time; None: what 2 GiB hold.
        parts: where the backbone has its modules, as its family says.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        spec: ModelSpec,
        attention: Backend = "auto",
        head_chunk: int | None = None,
        parts: Parts = Parts(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.backbone, self.spec, self.attention, self.head_chunk = backbone, spec, attention, head_chunk
        self.parts = parts

    def part(self, name: str) -> nn.Module:
        """The backbone's decoder, layers, norm, embedding, head or rotary embedding."""
        return self.parts.of(self.backbone, name)

    def layers(self) -> nn.ModuleList:
        """The backbone's decoder layers, first to last."""
        layers = self.part("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    def forward(
        self,
        batch: PackedBatch,
        decoding: DecodingParams,
        likelihood: Likelihood = "tokens",
        entropy: bool = True,
        plan: ScoringPlan | None = None,
    ) -> Scores:
        """Score the targets of a packed row under the decoding settings that drew them.

        Args:
            likelihood: `trajectory` also scores the positions that a denoising step did not commit.
            entropy: False saves its computation; `Scores.entropy` is then zero.
            plan: `scoring_plan` of the same arguments; None: made here, for which the host waits for the device.
        """
        if plan is None:
            plan = scoring_plan(batch, self.spec, decoding, likelihood)
        hidden = self.hidden_states(batch)
        rejected, scored = hidden[plan.rejected] if len(plan.rejected) else None, hidden[plan.positions]
        logprobs, entropies, log_factors = self.score_hidden(
            scored, rejected, batch.target_ids[plan.positions], plan, decoding, entropy
        )
        return Scores(plan.positions, logprobs, entropies, plan.rejected, log_factors, scored)

    def score_hidden(
        self,
        scored: Float[Tensor, "N D"],
        rejected: Float[Tensor, "M D"] | None,
        targets: Int64[Tensor, " N"],
        plan: ScoringPlan,
        decoding: DecodingParams,
        entropy: bool = True,
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " M"]]:
        """All that a forward asks of the head, in one call: under FSDP2 its weight is here from begin to end of it.

        Args:
            scored: [N, D] hidden states; rejected: [M, D], None if M = 0; targets: [N].

        Returns:
            log-probabilities [N], entropies [N] and log F [M] of `Scores`.
        """
        weight, options = self.part("head").weight, (self.spec.banned, decoding, self.head_chunk)
        assert isinstance(weight, Tensor)
        weight = local_weight(weight)
        logprobs, entropies, confidence = target_scores(weight, scored, targets, *options, entropy)
        if rejected is None:
            return logprobs, entropies, logprobs.new_zeros(0)
        bound, inclusive = rejection_bounds(plan, confidence, decoding)
        return logprobs, entropies, selection_factors(weight, rejected, bound, inclusive, *options)

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "T D"]:
        """[T, D] last hidden states of a packed row."""
        output = self.part("decoder")(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            packed_mask=build_mask(batch.layout, self.attention),
            use_cache=False,
        )
        return output.last_hidden_state[0]


def scoring_plan(
    batch: PackedBatch, spec: ModelSpec, decoding: DecodingParams, likelihood: Likelihood = "tokens"
) -> ScoringPlan:
    """Computed and left where the batch lies; a batch on a GPU makes the host wait."""
    positions = (batch.target_ids != IGNORE).nonzero().squeeze(1)
    rejected = _rejected(batch, spec, decoding, likelihood)
    if not len(rejected):
        return ScoringPlan(positions, rejected, rejected, rejected, 0)
    keys = torch.stack([batch.group_ids, batch.branch_ids, batch.block_ids, batch.view_ids])
    _, view = torch.unique_consecutive(keys, dim=1, return_inverse=True)
    return ScoringPlan(positions, rejected, view[positions], view[rejected], int(view[-1]) + 1)


def _rejected(batch: PackedBatch, spec: ModelSpec, decoding: DecodingParams, likelihood: Likelihood) -> Tensor:
    """Masked positions without a target, where the choice of positions has a probability of its own."""
    if likelihood == "tokens" or not decoding.choice_is_random:
        return batch.input_ids.new_zeros(0)
    masked = (batch.view_ids > 0) & (batch.input_ids == spec.mask_token_id)
    return (masked & (batch.target_ids == IGNORE)).nonzero().squeeze(1)


def rejection_bounds(
    plan: ScoringPlan, confidence: Float[Tensor, " N"], decoding: DecodingParams
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Which confidences a rejected candidate can have had, from those committed in the same view.

    With m the largest committed confidence, `low_confidence_dynamic` rejects below the threshold if m
    reaches it, else up to m; `low_confidence_static` rejects up to the smallest committed confidence.

    Args:
        confidence: [N] of the committed candidates.

    Returns:
        bound [M] and whether it is inclusive [M].
    """
    committed, rejected = plan.position_views, plan.rejected_views
    if decoding.strategy == "low_confidence_static":
        smallest = confidence.new_full((plan.views,), 1.0).scatter_reduce(0, committed, confidence, "amin")
        return smallest[rejected], torch.ones_like(rejected, dtype=torch.bool)
    largest = confidence.new_zeros(plan.views).scatter_reduce(0, committed, confidence, "amax")[rejected]
    sure = largest >= decoding.threshold
    return largest.masked_fill(sure, decoding.threshold), ~sure
