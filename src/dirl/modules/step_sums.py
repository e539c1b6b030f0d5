"""Sums over the trajectories of an optimizer step, whose tokens may lie in several rows of one rank."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dirl.batches import IGNORE, PackedBatch
from dirl.objectives import Objective, ScoredRow


@dataclass(frozen=True)
class StepSums:
    """What `Objective.summands` add up to."""

    sums: Mapping[str, Tensor]
    """[J] each, by `trajectory_ids`."""
    totals: Mapping[str, Tensor]
    """Over all ranks."""

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
            count: of the trajectories of this rank.
            over_ranks: sums a tensor over them; None: the objective needs no totals.
        """
        sums: dict[str, Tensor] = {}
        for row in rows:
            for name, value in objective.summands(row).items():
                start = sums.setdefault(name, value.new_zeros(count, dtype=torch.float64))
                start.index_add_(0, row.trajectory_ids, value.detach().double())
        totals = objective.totals(sums) if over_ranks is not None and objective.needs_totals else {}
        return cls(sums, {name: over_ranks(value) for name, value in totals.items()} if over_ranks else {})

    def beside(self, row: ScoredRow) -> ScoredRow:
        """The row with the sums of each of its positions' trajectories."""
        own = {name: value[row.trajectory_ids].to(row.logprobs.dtype) for name, value in self.sums.items()}
        return replace(row, sums=own, totals=self.totals)


def divided(batches: Sequence[PackedBatch]) -> bool:
    """Whether a trajectory is scored in more than one of the rows."""
    found = [batch.trajectory_ids[batch.target_ids != IGNORE].unique() for batch in batches]
    return bool(found) and len(torch.cat(found).unique()) < sum(map(len, found))
