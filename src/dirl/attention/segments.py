"""Which keys the queries of a packed row need, without FlexAttention: a plan of segments of few queries each.

A segment is some queries of one branch, of neighbouring blocks. Its keys are the clean tokens of prompt and branch in
the blocks before its last one, and the other tokens of the segment. Nearly all of these pairs are visible, so attention
over the row costs about the visible pairs, where a branch as one rectangle would cost its views times its views.
Segments with about as many keys go together through one matrix product (`dirl.attention.segment_attention`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dirl.batches import Layout

QUERIES = 64
"""Queries of a segment: more of them waste pairs within the segment, fewer make matrix products slow."""
PAIRS = 2**16
"""Query-key pairs, padding included, that go through one product; a segment alone may have more."""


@dataclass(frozen=True)
class SegmentBatch:
    """N segments padded to Q queries and K keys; a padded place holds T, the length of the row."""

    queries: Int64[Tensor, "N Q"]
    """[N, Q] positions in the packed row."""
    keys: Int64[Tensor, "N K"]
    """[N, K] positions: clean tokens in the order of their blocks, then the queries that are not among them."""
    free: int
    """The first so many keys are seen by all queries."""
    hidden: Bool[Tensor, "N Q others"]
    """[N, Q, K - free] bool, True where a query does not see one of the other keys."""


@dataclass(frozen=True)
class SegmentMask:
    """Every token of the row is a query of one segment."""

    batches: tuple[SegmentBatch, ...]
    length: int
    """T of the packed row."""

    @property
    def pairs(self) -> int:
        """Query-key pairs that are computed per head, padding included."""
        return sum(batch.queries.numel() * batch.keys.shape[1] for batch in self.batches)


def segment_mask(layout: Layout, queries: int = QUERIES, pairs: int = PAIRS) -> SegmentMask:
    """The plan for a layout whose tokens stand in any order, on the layout's device."""
    device = layout.group_ids.device
    order, row = _sorted(Layout(*(ids.cpu() for ids in vars(layout).values())))
    branch, run = _numbered(row.group_ids, row.branch_ids), _numbered(*vars(row).values())
    table, table_start, seen = _clean_streams(row, branch)
    start, size = _cut(branch, run, queries)
    keys = seen[start + size - 1]  # blocks ascend within a branch: the last query sees the most
    free = seen[start]
    rest, rest_start, rest_size = _not_clean_keys(row, start, size)

    # One place more, for padding: token T, which is in no run. As a query it sees all keys, for a softmax over none
    # is not a number.
    order, seen, run = (torch.cat([x, x.new_tensor([y])]) for x, y in ((order, len(row)), (seen, 0), (run, -1)))
    batches = []
    for chosen in _batched(size, keys, rest_size, pairs):
        query = _padded(start[chosen], size[chosen], len(row))
        clean = table[_padded(table_start[branch[start[chosen]]], keys[chosen], len(table) - 1)]
        own = rest[_padded(rest_start[chosen], rest_size[chosen], len(rest) - 1)]
        first = int(free[chosen].min())
        key = torch.cat([clean, own], dim=1)
        hidden = (run[query][:, :, None] != run[key][:, None, first:]) & (query != len(row))[:, :, None]
        hidden[:, :, : clean.shape[1] - first] &= torch.arange(first, clean.shape[1]) >= seen[query][:, :, None]
        places, read = order[query], order[key]
        batches.append(SegmentBatch(places.to(device), read.to(device), first, hidden.to(device)))
    return SegmentMask(tuple(batches), len(row))


def _sorted(layout: Layout) -> tuple[Tensor, Layout]:
    """The tokens in order of (group, branch, block, view): their positions, and the layout in that order."""
    order = torch.arange(len(layout))
    for ids in (layout.view_ids, layout.block_ids, layout.branch_ids, layout.group_ids):
        order = order[ids[order].argsort(stable=True)]
    return order, layout[order]


def _numbered(*columns: Tensor) -> Tensor:
    """0, 1, 2, ... of each run of equal rows of the columns."""
    changes = torch.stack([column.diff() != 0 for column in columns]).any(dim=0)
    return torch.cat([changes.new_zeros(1), changes]).cumsum(0)


def _clean_streams(row: Layout, branch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per branch the clean tokens that it reads, its own and the prompt's, in order of their blocks.

    Returns:
        the tokens of all branches one after the other, and a last one that stands for padding; where each branch
        begins there; and how many of its branch's tokens each token of the row sees, which are the first ones.
    """
    clean = (row.view_ids == 0).nonzero().squeeze(1)
    first = torch.cat([branch.new_zeros(1), branch.diff().nonzero().squeeze(1) + 1])  # first token of each branch
    count = torch.bincount(branch[clean], minlength=len(first))
    # A prompt is the first branch of its group.
    group = _numbered(row.group_ids)[first]
    prompt = torch.searchsorted(group, group)
    reads = (row.branch_ids[first] != 0) & (row.branch_ids[first[prompt]] == 0)
    shared, copies = prompt[reads], count[prompt[reads]]
    index = torch.arange(int(copies.sum())) + (_starts(count)[shared] - _starts(copies)).repeat_interleave(copies)

    tokens = torch.cat([clean, clean[index]])
    reader = torch.cat([branch[clean], reads.nonzero().squeeze(1).repeat_interleave(copies)])
    blocks = int(row.block_ids.max()) + 1
    place, by_place = (reader * blocks + row.block_ids[tokens]).sort(stable=True)
    begin = torch.searchsorted(place, torch.arange(len(first)) * blocks)
    seen = torch.searchsorted(place, branch * blocks + row.block_ids) - begin[branch]
    return torch.cat([tokens[by_place], tokens.new_tensor([len(row)])]), begin, seen


def _cut(branch: Tensor, run: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """Start and size of segments of whole runs: each branch in equal parts of about `queries` tokens."""
    size = torch.bincount(branch)
    end = torch.bincount(run).cumsum(0)[run] - _starts(size)[branch]  # of the token's run, within its branch
    parts = ((size + queries // 2) // queries).clamp(min=1)
    part = (end - 1) * parts[branch] // size[branch]
    sizes = torch.bincount(_numbered(branch, part))
    return _starts(sizes), sizes


def _not_clean_keys(row: Layout, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of each segment that its clean keys lack: the noised ones, and those of its last block.

    Returns:
        the tokens of all segments one after the other, and a last one that stands for padding; where each segment
        begins there; and how many it has.
    """
    last = row.block_ids[start + size - 1].repeat_interleave(size)
    lacking = (row.view_ids != 0) | (row.block_ids == last)
    count = torch.cat([start.new_zeros(1), lacking.cumsum(0)])
    return (
        torch.cat([lacking.nonzero().squeeze(1), start.new_tensor([len(row)])]),
        count[start],
        (count[start + size] - count[start]),
    )


def _batched(size: Tensor, keys: Tensor, rest: Tensor, pairs: int) -> list[list[int]]:
    """Segments by their number of keys, the clean ones and the rest, as many together as stay within so many pairs."""
    batches: list[list[int]] = []
    sizes = torch.stack([size, keys, rest], dim=1)
    padded = sizes.new_zeros(3)
    for segment in (keys + rest).argsort(descending=True, stable=True).tolist():
        padded = padded.maximum(sizes[segment])
        queries, clean, others = padded.tolist()
        if not batches or (len(batches[-1]) + 1) * queries * (clean + others) > pairs:
            batches.append([])
            padded = sizes[segment]
        batches[-1].append(segment)
    return batches


def _padded(start: Tensor, size: Tensor, padding: int) -> Tensor:
    """[N, L]: the numbers start..start + size - 1 of each, then padding."""
    column = torch.arange(int(size.max()))
    return (start[:, None] + column).masked_fill(column >= size[:, None], padding)


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes
