"""FlexAttention for packed layouts: the visibility predicate as a mask_mod, and the BlockMask of its tiles.

FlexAttention walks tiles of `tile` x `tile` tokens: it skips the empty ones and asks the mask_mod only in the partial
ones. A query sees three intervals of keys, so the visible pairs of every tile are counted from the ends of the
intervals: the work is a sort of the T tokens and the [T / tile, T / tile] tables that the BlockMask itself consists
of, all of it on the layout's device.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dirl.attention.intervals import key_intervals
from dirl.batches import Layout

TILE = 128
"""Tokens on a side of a tile, FlexAttention's own default; the kernels take multiples of it."""

KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""Rows of less than a tile would else get the kernel for decoding, whose tile is that many queries of a whole group of
heads: it finds no way to run."""

LEAST_WIDTH = 16
"""The least width of a head in the kernels: narrower ones, of toy models, get zeros beside their numbers."""

COMPILATIONS = 64
"""How often the kernel may be compiled in one process, for as many kinds of inputs."""

_At = Int[Tensor, "*#pairs"]
MaskMod = Callable[[_At, _At, _At, _At], Bool[Tensor, "*pairs"]]


def mask_mod(begin: Int32[Tensor, "3 T"], end: Int32[Tensor, "3 T"]) -> MaskMod:
    """`visible` in the form that FlexAttention asks for: (batch, head, query index, key index) -> bool.

    Args:
        begin, end: the `key_intervals`. Nothing is read at the key, whose place is all that matters.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        prompt = (key >= begin[0, query]) & (key < end[0, query])
        own_branch = (key >= begin[1, query]) & (key < end[1, query])
        own_block = (key >= begin[2, query]) & (key < end[2, query])
        return prompt | own_branch | own_block

    return sees


def flex_mask(layout: Layout, tile: int = TILE) -> BlockMask:
    """The BlockMask of a layout that packing made, for one batch row and all heads, on the layout's device.

    Empty, full and partial are exact, but for the last tile of a T that is no multiple of `tile`: some of its
    tokens do not exist, so it is never called full. Build it where attention will run: `BlockMask.to` moves the
    tables, not the intervals that the mask_mod reads.
    """
    if tile < 1:
        raise ValueError(f"tile={tile} is not a number of tokens; use a positive one, on a GPU a multiple of {TILE}")
    tokens = len(layout)
    if tokens == 0:
        raise ValueError("the layout holds 0 tokens; a block mask needs at least one")
    begin, end = key_intervals(layout)
    pairs = tile_pairs(begin, end, tile)
    full = pairs == tile * tile
    mask = BlockMask.from_kv_blocks(
        *_ordered((pairs > 0) & ~full),
        *_ordered(full),
        BLOCK_SIZE=tile,
        mask_mod=mask_mod(begin, end),
        seq_lengths=(tokens, tokens),
    )
    _vary(1, begin, end)
    _vary(2, mask.kv_num_blocks, mask.full_kv_num_blocks, mask.q_num_blocks, mask.full_q_num_blocks)
    for dim in (2, 3):
        _vary(dim, mask.kv_indices, mask.full_kv_indices, mask.q_indices, mask.full_q_indices)
    return mask


def tile_pairs(begin: Int32[Tensor, "3 T"], end: Int32[Tensor, "3 T"], tile: int) -> Int64[Tensor, "tiles tiles"]:
    """[query tiles, key tiles]: how many pairs of each tile are visible, from the `key_intervals`."""
    tokens = begin.shape[1]
    count = -(-tokens // tile)
    query_tile = torch.arange(tokens, device=begin.device) // tile
    # The keys before an interval's end, less those before its begin: all of the tiles before it, a part of its own.
    whole, part = begin.new_zeros(2, count * (count + 1))
    for ends, sign in ((end, 1), (begin, -1)):
        index = (query_tile * (count + 1) + ends // tile).flatten()
        whole.scatter_add_(0, index, torch.full_like(ends, sign * tile).flatten())
        part.scatter_add_(0, index, (sign * (ends % tile)).flatten())
    whole, part = whole.view(count, -1), part.view(count, -1)
    before = whole.flip(1).cumsum(1).flip(1) - whole
    return (before + part)[:, :count]


def flex_forward(
    query: Float[Tensor, "1 H T D"],
    key: Float[Tensor, "1 H_kv T D"],
    value: Float[Tensor, "1 H_kv T D"],
    mask: BlockMask,
    scale: float | None = None,
) -> Float[Tensor, "1 H T D"]:
    """Attention of query [1, H, T, D] to key and value [1, H_kv, T, D]; H is a multiple of H_kv.

    On a GPU it is compiled. On CPU it has no backward and holds [H, T, T] scores: meant for comparisons.
    """
    attend: Callable[..., Any] = flex_attention
    if query.is_cuda and not torch.compiler.is_compiling():
        attend = _compiled()
    width = query.shape[-1]
    options = {"scale": width**-0.5 if scale is None else scale, "enable_gqa": True, "kernel_options": KERNEL_OPTIONS}
    if width >= LEAST_WIDTH:
        return attend(query, key, value, block_mask=mask, **options)
    query, key, value = (F.pad(x, (0, LEAST_WIDTH - width)) for x in (query, key, value))
    return attend(query, key, value, block_mask=mask, **options)[..., :width]


@cache
def _compiled() -> Callable[..., Tensor]:
    # fullgraph: at dynamo's limit of compilations it must raise, for the eager fallback holds all T x T scores. Its own
    # limit of 8 would be met by two dtypes, with and without gradient: see `_vary`.
    return torch._dynamo.config.patch(recompile_limit=COMPILATIONS)(torch.compile(flex_attention, fullgraph=True))


def _vary(dim: int, *tensors: Tensor | None) -> None:
    """Tell the compiler that this size differs from row to row.

    A run then compiles three times: for the first length, for all lengths (dynamo learns of the sizes that are plain
    numbers when they change), and for rows of a single tile, whose 1 is a constant to dynamo.
    """
    for tensor in tensors:
        assert tensor is not None, "a table that every mask of ours has"
        torch._dynamo.maybe_mark_dynamic(tensor, dim)


def _ordered(table: Tensor) -> tuple[Tensor, Tensor]:
    """How BlockMask writes a boolean table: the number of True columns of each row, and these columns first."""
    columns = table.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return table.sum(dim=-1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None]
