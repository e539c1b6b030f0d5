"""What an objective's loss looks at: the scored positions of one packed row."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int, Int64
from torch import Tensor

from dirl.batches import PackedBatch


@dataclass(frozen=True)
class ScoredRow:
    """N scored positions of a packed row on the module's device; only `logprobs` carries a gradient.

    A rank with fewer rows than others has rows without scored positions, N = 0: its loss is a sum over nothing.
    """

    logprobs: Float[Tensor, " N"]
    """[N] log-probability of the target, nats."""
    entropy: Float[Tensor, " N"]
    """[N] of the distribution at the position, nats."""
    weights: Float[Tensor, " N"]
    """[N] of the objective's `weights`."""
    trajectory_ids: Int[Tensor, " N"]
    """[N] which trajectory of this rank's optimizer step."""
    columns: Mapping[str, Float[Tensor, " N"]]
    """[N] each: what the objective's `columns` gave, and what old and reference policy said of the targets."""
    rejected: "ScoredRow | None" = None
    """With `likelihood: trajectory` the masked positions that their denoising step did not commit: `logprobs` are their
    log F, `weights` those of their trajectory. None: there are none."""

    sums: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    """[N] each, without gradient: of the objective's `summands`, the sum over the position's trajectory, and of its
    `token_summands` the sum over all views of its token."""
    totals: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Of the objective's `totals`, the sum over the ranks of an optimizer step."""

    @property
    def old_logprobs(self) -> Float[Tensor, " N"]:
        """[N] of the policy that begins the epoch; the current one's, without gradient, while it has not moved."""
        stored = self.columns.get("old_logprobs")
        return self.logprobs.detach() if stored is None else stored


def scored_row(
    row: PackedBatch,
    positions: Int64[Tensor, " N"],
    logprobs: Float[Tensor, " N"],
    entropy: Float[Tensor, " N"],
    weights: Float[Tensor, " N"] | None = None,
    rejected: ScoredRow | None = None,
) -> ScoredRow:
    """Positions [N] of a row with their log-probabilities and entropies; `weights` None: the row's loss weights."""
    return ScoredRow(
        logprobs=logprobs,
        entropy=entropy,
        weights=row.loss_weights[positions] if weights is None else weights,
        trajectory_ids=row.trajectory_ids[positions],
        columns=columns_at(row, positions),
        rejected=rejected,
    )


def columns_at(row: PackedBatch, positions: Int64[Tensor, " N"]) -> Mapping[str, Float[Tensor, " N"]]:
    """[N] each; a row that only keeps other ranks company has no columns, and none of its positions is scored."""
    columns = {name: value[positions] for name, value in row.columns.items()}
    return columns if len(positions) else defaultdict(lambda: row.loss_weights.new_zeros(0), columns)
