"""What each token of an optimizer step is worth, where a value model has said what it expects."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dirl.advantages.gae import GAE, credit
from dirl.batches import IGNORE, PackedBatch


def with_credit(batches: Sequence[PackedBatch], gae: GAE) -> list[PackedBatch]:
    """The rows of one rank's optimizer step with columns of their own for each scored token.

    `advantages` in place of the group's, `returns` that the value is to predict, and `value_weights`: a trajectory
    weighs in the value's loss as it does in the policy's, its tokens all the same (TraceRL, eq. 4). The tokens of a
    trajectory may lie in any of the rows.

    Args:
        batches: on the host, with `values` of the old value model and `outcomes`.
    """
    scored = [(batch.target_ids != IGNORE).nonzero().squeeze(1) for batch in batches]
    rows = [(batch, at) for batch, at in zip(batches, scored, strict=True) if len(at)]
    if not rows:
        return list(batches)

    def joined(name: str) -> np.ndarray:
        return torch.cat([batch.tensors()[name][at] for batch, at in rows]).numpy()

    trajectories = joined("trajectory_ids")
    steps = np.column_stack([joined("block_ids"), joined("view_ids")])
    found = credit(trajectories, steps, joined("values"), joined("outcomes"), gae.gamma, gae.lam)
    of_all = np.bincount(trajectories, joined("loss_weights")) / np.maximum(np.bincount(trajectories), 1)
    columns = {**found._asdict(), "value_weights": of_all[trajectories]}
    ends = np.cumsum([len(at) for at in scored])[:-1]
    parts = {name: np.split(value.astype(np.float32), ends) for name, value in columns.items()}
    return [
        batch.with_columns({name: _placed(batch, at, part[number]) for name, part in parts.items()})
        for number, (batch, at) in enumerate(zip(batches, scored, strict=True))
    ]


def _placed(batch: PackedBatch, at: Tensor, numbers: np.ndarray) -> Tensor:
    """[T], 0 where nothing is scored."""
    column = torch.zeros_like(batch.loss_weights)
    column[at] = torch.from_numpy(numbers).to(column)
    return column
