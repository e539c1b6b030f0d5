"""One policy update from ready batches: forwards, DiPO loss, backwards; and what its attention looks at."""

from collections.abc import Iterable, Sequence

from dirl.attention import build_mask
from dirl.attention.backend import Backend
from dirl.attention.segments import SegmentMask
from dirl.batches import IGNORE, Layout, PackedBatch
from dirl.models import BlockDiffusionLM
from dirl.objectives import DiPO
from dirl.objectives.scored import scored_row
from dirl.types import DecodingParams


def accumulate_gradient(model: BlockDiffusionLM, batches: Iterable[PackedBatch], divisor: float) -> float:
    """Backward of the DiPO loss over all batches, whose old policy is the behaviour policy; returns the loss."""
    total = 0.0
    for batch in batches:
        scores = model(batch, DecodingParams(), entropy=False)
        row = batch.with_columns({"old_logprobs": batch.columns["behaviour_logprobs"]})
        loss = DiPO().loss(scored_row(row, scores.positions, scores.logprobs, scores.entropy)).loss / divisor
        loss.backward()
        total += float(loss.detach())
    return total


def scored_tokens(batches: Sequence[PackedBatch]) -> int:
    return sum(int((batch.target_ids != IGNORE).sum()) for batch in batches)


def computed_pairs(layout: Layout, backend: Backend) -> int:
    """(query, key) pairs that attention works on, per head: hidden ones and padding included."""
    if backend == "dense":
        return len(layout) ** 2
    mask = build_mask(layout, backend)
    if isinstance(mask, SegmentMask):
        return mask.pairs
    tiles = mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()
    return int(tiles) * mask.BLOCK_SIZE[0] * mask.BLOCK_SIZE[1]
