"""Columns of a row that models fill in at its scored positions, before the policy learns from it."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dirl.batches import PackedBatch

Found = dict[str, list[tuple[Int64[Tensor, " _"], Float[Tensor, " _"]]]]
"""Name of a column -> positions in a row and the numbers that belong there, as many; they may come in parts."""


def fill_in(batch: PackedBatch, found: Found) -> PackedBatch:
    """The batch with the named columns, in which all but these positions is 0."""
    columns: dict[str, Any] = {}
    for name, events in found.items():
        columns[name] = torch.zeros_like(batch.loss_weights)
        for positions, logprobs in events:
            columns[name][positions.to(columns[name].device)] = logprobs.to(columns[name])
    return batch.with_columns(columns)


def has_old(batch: PackedBatch) -> bool:
    """Whether the old policy has scored it, since the policy moves before it learns from it."""
    return "old_logprobs" in batch.columns
