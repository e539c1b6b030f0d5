"""Attention without FlexAttention: the queries of each branch meet the keys they can see, and no others.

A segment is one branch of one group. Its queries can only see the shared prompt of the group and the
branch itself, so attention over a packed row of T tokens costs the sum of [branch, prompt + branch]
rectangles instead of T x T. Works on any device, forward and backward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dirl.attention.sdpa import grouped_sdpa
from dirl.attention.visibility import visible
from dirl.types import Layout


@dataclass(frozen=True)
class SegmentMask:
    """Gather plan for S segments of at most Q queries and K keys each."""

    query_index: Tensor
    """[S, Q] positions in the packed row; padding repeats position 0."""
    key_index: Tensor
    """[S, K] positions in the packed row; padding repeats position 0."""
    allowed: Tensor
    """[S, 1, Q, K] bool; a padded query sees key 0, so that no row of the softmax is empty."""
    output_index: Tensor
    """[T]: where in the flattened [S * Q] each packed position's output lies."""


def segment_mask(layout: Layout) -> SegmentMask:
    """Plan for a layout whose branches are contiguous runs, the shared prompt first in its group."""
    device = layout.group_ids.device
    length = len(layout)
    pairs = torch.stack([layout.group_ids, layout.branch_ids])
    (groups, branches), sizes = torch.unique_consecutive(pairs, dim=1, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    groups, branches, sizes, starts = (x.tolist() for x in (groups, branches, sizes, starts))
    if len(set(zip(groups, branches, strict=True))) != len(groups):
        raise AssertionError("a branch of the packed row is not contiguous")
    prompts = {g: (s, n) for g, b, s, n in zip(groups, branches, starts, sizes, strict=True) if b == 0}

    query_rows, key_rows = [], []
    for group, branch, start, size in zip(groups, branches, starts, sizes, strict=True):
        own = torch.arange(start, start + size)
        query_rows.append(own)
        prompt = prompts.get(group)
        shared = branch != 0 and prompt is not None
        key_rows.append(torch.cat([torch.arange(prompt[0], sum(prompt)), own]) if shared else own)
    query_index, query_pad = _pad(query_rows, device)
    key_index, key_pad = _pad(key_rows, device)

    allowed = visible(layout[query_index][:, :, None], layout[key_index][:, None, :])
    allowed &= ~key_pad[:, None, :]
    allowed[..., 0] |= query_pad
    output_index = torch.empty(length, dtype=torch.long, device=device)
    real = ~query_pad.flatten()
    output_index[query_index.flatten()[real]] = real.nonzero().squeeze(1)
    return SegmentMask(query_index, key_index, allowed[:, None], output_index)


def segment_attention(query: Tensor, key: Tensor, value: Tensor, mask: SegmentMask, scale: float) -> Tensor:
    """SDPA per segment. query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D]."""
    q = query[0].transpose(0, 1)[mask.query_index].transpose(1, 2)
    k = key[0].transpose(0, 1)[mask.key_index].transpose(1, 2)
    v = value[0].transpose(0, 1)[mask.key_index].transpose(1, 2)
    out = grouped_sdpa(q, k, v, mask.allowed, scale)
    return out.transpose(1, 2).flatten(0, 1)[mask.output_index][None]


def _pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of different lengths -> ([S, L] indices padded with 0, [S, L] bool that is True on padding)."""
    index = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    sizes = torch.tensor([len(row) for row in rows], device=device)
    return index, torch.arange(index.shape[1], device=device)[None] >= sizes[:, None]
