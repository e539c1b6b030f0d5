"""The keys that each query of a packed row sees, as three intervals of places in the row.

Packing lays out a row in stretches: the clean tokens of a branch in one, in the order of their blocks, and each noised
view of a block in one. What `visible` says of T x T pairs is then 3 x T numbers: the clean blocks before the query's in
the prompt, those in its own branch, and its own block. They are found by sorting, without a host sync.
"""

import torch
from jaxtyping import Int32
from torch import Tensor

from dirl.batches import Layout


def key_intervals(layout: Layout) -> tuple[Int32[Tensor, "3 T"], Int32[Tensor, "3 T"]]:
    """Where the three intervals of each query begin and end (exclusive), int32 [3, T] each; they do not overlap."""
    group, branch, block, view = vars(layout).values()
    length = len(layout)
    blocks, views = block.max() + 1, view.max() + 1
    stream = group * (branch.max() + 1) + branch  # a branch of a group
    noised = (view != 0).long()
    code = ((2 * stream + noised) * blocks + block) * views + view
    ordered, place = code.sort(stable=True)
    _assert_stretches(ordered, place, clean=noised[place] == 0, per_branch=2 * blocks * views)

    def clean_before(reader: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """Begin and end of the clean tokens of this branch that come before a block."""
        first = torch.searchsorted(ordered, 2 * reader * blocks * views)
        count = torch.searchsorted(ordered, (2 * reader * blocks + block) * views) - first
        begin = place[first.clamp(max=length - 1)]
        return begin, begin + count

    own = clean_before(stream, block)
    prompt = clean_before(stream - branch, torch.where(branch == 0, 0, block))  # the prompt's own stream is `own`
    begin, end = zip(prompt, own, _runs(code), strict=True)
    return torch.stack(begin).int(), torch.stack(end).int()


def _runs(code: Tensor) -> tuple[Tensor, Tensor]:
    """Begin and end of the run of equal codes that each place is in."""
    length = len(code)
    place = torch.arange(length, device=code.device)
    change = code.diff() != 0
    edge = change.new_ones(1)
    begin = torch.where(torch.cat([edge, change]), place, 0).cummax(0).values
    end = torch.where(torch.cat([change, edge]), place + 1, length).flip(0).cummin(0).values.flip(0)
    return begin, end


def _assert_stretches(ordered: Tensor, place: Tensor, clean: Tensor, per_branch: Tensor) -> None:
    """That equal tokens, and the clean tokens of a branch, lie side by side in the order of their blocks."""
    same_branch = ordered[1:] // per_branch == ordered[:-1] // per_branch
    together = (ordered.diff() == 0) | (same_branch & clean[1:] & clean[:-1])
    torch._assert_async(
        (~together | (place.diff() == 1)).all(), "a view, or the clean copy of a branch, lies in pieces in the row"
    )
