"""Sums over the trajectories of an optimizer step, or over the views of a token, which may lie in several rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dirl.batches import IGNORE, PackedBatch
from dirl.models.policy import ScoringPlan
from dirl.objectives import Objective, ScoredRow
from dirl.objectives.scored import scored_row


@dataclass(frozen=True)
class StepSums:
    """What `Objective.summands` and `token_summands` add up to."""

    sums: Mapping[str, Float[Tensor, " J"]]
    """[J] each, by `trajectory_ids`."""
    totals: Mapping[str, Float[Tensor, ""]]
    """Over all ranks."""
    token_keys: Int[Tensor, " K"] | None = None
    """[K] of the tokens that have sums of their own, ascending."""
    token_sums: Mapping[str, Float[Tensor, " K"]] = field(default_factory=dict)
    """[K] each."""

    @classmethod
    def of_rows(
        cls,
        objective: Objective,
        rows: Sequence[ScoredRow],
        count: int,
        over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> "StepSums":
        """Of all rows of this rank, in double precision.

        Args:
            count: above all `trajectory_ids` of the rows.
            over_ranks: sums a tensor over them; None: the objective needs no totals.
        """
        sums: dict[str, Tensor] = {}
        for row in rows:
            for name, value in objective.summands(row).items():
                start = sums.setdefault(name, value.new_zeros(count, dtype=torch.float64))
                start.index_add_(0, row.trajectory_ids, value.detach().double())
        wanted = bool(rows) and over_ranks is not None and objective.needs_totals  # with no row, no rank has one
        totals = objective.totals(sums) if wanted else {}
        totals = {name: over_ranks(value) for name, value in totals.items()} if over_ranks else {}
        return cls(sums, totals, *_of_tokens(objective, rows))

    def beside(self, row: ScoredRow) -> ScoredRow:
        """The row with the sums of each of its positions' trajectories and tokens."""
        dtype = row.logprobs.dtype
        own = {name: value[row.trajectory_ids].to(dtype) for name, value in self.sums.items()}
        if self.token_keys is not None:
            at = torch.searchsorted(self.token_keys, _token_keys(row))
            own |= {name: value[at].to(dtype) for name, value in self.token_sums.items()}
        return replace(row, sums=own, totals=self.totals)


def _of_tokens(objective: Objective, rows: Sequence[ScoredRow]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Keys, ascending, and sums of the tokens of all rows, in double precision."""
    found = [objective.token_summands(row) for row in rows]
    if not any(found):
        return None, {}
    keys, at = torch.cat([_token_keys(row) for row in rows]).unique(return_inverse=True)
    sums = {}
    for name in found[0]:
        values = torch.cat([each[name].detach().double() for each in found])
        sums[name] = values.new_zeros(len(keys)).index_add_(0, at, values)
    return keys, sums


def _token_keys(row: ScoredRow) -> Tensor:
    """[N] a number for each token of each trajectory; columns are exact up to 2^24."""
    return row.trajectory_ids * 2**24 + row.columns["response_index"].long()


def unscored(row: PackedBatch, plan: ScoringPlan) -> ScoredRow:
    """The scored positions of a row, before a forward: log-probs and entropies are 0."""
    zeros = row.loss_weights.new_zeros(len(plan.positions), dtype=torch.float32)
    return scored_row(row, plan.positions, zeros, zeros)


def divided(batches: Sequence[PackedBatch]) -> bool:
    """Whether a trajectory is scored in more than one of the rows."""
    found = [batch.trajectory_ids[batch.target_ids != IGNORE].unique() for batch in batches]
    return bool(found) and len(torch.cat(found).unique()) < sum(map(len, found))


def trajectories(*batches: PackedBatch) -> int:
    """A number above all of their `trajectory_ids`; after a change of the number of processes some are of none."""
    return max((int(batch.trajectory_ids.max()) + 1 for batch in batches), default=0)
