"""FlexAttention for packed layouts: the visibility predicate as a mask_mod, and the BlockMask of its tiles.

FlexAttention walks tiles of `tile` x `tile` tokens: it skips the empty ones and asks the mask_mod only in the
partial ones. Which tile is which follows from a few numbers per tile, so no tensor grows with T x T: the largest
are the [T / tile, T / tile] tables that the BlockMask itself consists of.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dirl.attention.visibility import visible
from dirl.types import Layout

TILE = 128
"""Tokens on a side of a tile, FlexAttention's own default; the kernels take multiples of it."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_mod(layout: Layout) -> MaskMod:
    """`visible` in the form that FlexAttention asks for: (batch, head, query index, key index) -> bool."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(layout[query], layout[key])

    return sees


def block_mask(layout: Layout, tile: int = TILE) -> BlockMask:
    """The BlockMask of a layout, for one batch row and all heads, on the layout's device.

    Empty, full and partial are exact, but for the last tile of a T that is no multiple of `tile`: some of its
    tokens do not exist, so it is never called full. Build it where attention will run: `BlockMask.to` moves the
    tables, not the layout that the mask_mod reads.
    """
    if tile < 1:
        raise ValueError(f"tile={tile} is not a number of tokens; use a positive one, on a GPU a multiple of {TILE}")
    tokens = len(layout)
    if tokens == 0:
        raise ValueError("the layout holds 0 tokens; a block mask needs at least one")
    tiles = _cut(layout, tile)
    seen, full = _seen_tiles(tiles), _full_tiles(tiles)
    if tokens % tile:
        full[-1, :] = full[:, -1] = False
    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~full),
        *_ordered(full),
        BLOCK_SIZE=tile,
        mask_mod=mask_mod(layout),
        seq_lengths=(tokens, tokens),
    )


def flex_forward(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None = None) -> Tensor:
    """Attention of query [1, H, T, D] to key and value [1, H_kv, T, D]; H is a multiple of H_kv.

    On a GPU it is compiled. On CPU it has no backward and holds [H, T, T] scores: meant for comparisons.
    """
    if torch.is_autocast_enabled(query.device.type):  # the norms leave query and key in fp32 beside a bf16 value
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    attend = _compiled() if query.is_cuda else flex_attention
    return attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


@cache
def _compiled() -> Callable[..., Tensor]:
    # Packed rows differ in length: one kernel of dynamic length serves them, where static ones would end at dynamo's
    # limit of 8 compilations. fullgraph: at any limit it must raise, for the eager fallback holds all T x T scores.
    return torch.compile(flex_attention, fullgraph=True)


def _cut(layout: Layout, tile: int) -> Layout:
    """The layout as [tiles, tile]. Copies of the last token fill the last tile: they change no 'any' and no 'all'."""
    count = -(-len(layout) // tile)
    index = torch.arange(count * tile, device=layout.group_ids.device).clamp_(max=len(layout) - 1)
    return layout[index.view(count, tile)]


def _seen_tiles(tiles: Layout) -> Tensor:
    """[query tiles, key tiles], True where some query sees some key."""
    group, branch, block = tiles.group_ids.flatten(), tiles.branch_ids.flatten(), tiles.block_ids.flatten()
    count, size = tiles.group_ids.shape
    tile = torch.arange(count, device=group.device).repeat_interleave(size)
    seen = torch.zeros(count, count, dtype=torch.bool, device=group.device)

    # The same block, branch and view.
    run_tile, run = _distinct(tile, _numbered(group, branch, block, tiles.view_ids.flatten()), count)[:2]
    left, right = _matches(run, run)
    seen[run_tile[left], run_tile[right]] = True

    # Earlier clean blocks: a key stands in its own branch's stream, a query reads that stream and the prompt's.
    # Some pair of a stream is visible iff its first clean block in one tile precedes its last query in the other.
    own, prompt = _numbered(torch.cat([group, group]), torch.cat([branch, torch.zeros_like(branch)])).chunk(2)
    clean = tiles.view_ids.flatten() == 0
    key_tile, key_stream, entry = _distinct(tile[clean], own[clean], count)
    first = block.new_zeros(len(key_tile)).scatter_reduce_(0, entry, block[clean], "amin", include_self=False)
    query_tile, query_stream, entry = _distinct(tile.repeat(2), torch.cat([own, prompt]), count)
    last = block.new_zeros(len(query_tile)).scatter_reduce_(0, entry, block.repeat(2), "amax", include_self=False)
    left, right = _matches(query_stream, key_stream)
    earlier = first[right] < last[left]
    seen[query_tile[left[earlier]], key_tile[right[earlier]]] = True
    return seen


def _full_tiles(tiles: Layout) -> Tensor:
    """[query tiles, key tiles], True where every query sees every key."""
    group, branch, block, view = tiles.group_ids, tiles.branch_ids, tiles.block_ids, tiles.view_ids
    same_group = _all_equal(group.aminmax(dim=1), group.aminmax(dim=1))

    # The keys are of the prompt or of the one branch that all queries are of; where both occur, prompt counts as it.
    response = torch.where(branch == 0, branch.amax(dim=1, keepdim=True), branch)
    reads_branch = (response == 0).all(dim=1) | _all_equal(branch.aminmax(dim=1), response.aminmax(dim=1))

    # The keys end before the queries begin, or in the very run that the queries begin with.
    block_low, block_high = block.aminmax(dim=1)
    run = _numbered(*(ids.flatten() for ids in (group, branch, block, view))).view_as(block)
    joined = _all_equal(_bounds(run, block == block_low[:, None]), _bounds(run, block == block_high[:, None]))
    earlier = block_high < block_low[:, None]

    # A noised key is seen by its own run alone: it must be in the run where both meet, and all queries too.
    noised = view != 0
    clean = ~noised.any(dim=1)
    clean_before_last = ~(noised & (block < block_high[:, None])).any(dim=1)
    one_block = (block_low == block_high)[:, None]
    return same_group & reads_branch & (earlier & clean | joined & (clean | clean_before_last & one_block))


def _all_equal(queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> Tensor:
    """[query tiles, key tiles] from the (low, high) of each: True where low and high of both are one value."""
    return (queries[0][:, None] == keys[1]) & (queries[1][:, None] == keys[0])


def _numbered(*columns: Tensor) -> Tensor:
    """One number for each distinct row of the columns."""
    number = torch.zeros_like(columns[0], dtype=torch.long)
    for column in columns:
        rank = torch.unique(column, return_inverse=True)[1]
        number = torch.unique(number * column.numel() + rank, return_inverse=True)[1]
    return number


def _distinct(tile: Tensor, number: Tensor, tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tile and the number of each distinct (tile, number), and for each input which of them it is."""
    entries, entry = torch.unique(number * tiles + tile, return_inverse=True)
    return entries % tiles, entries // tiles, entry


def _matches(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """All (i, j) with left[i] == right[j], as two index vectors."""
    ordered, order = right.sort()
    begin = torch.searchsorted(ordered, left)
    count = torch.searchsorted(ordered, left, right=True) - begin
    i = torch.arange(len(left), device=left.device).repeat_interleave(count)
    nth = torch.arange(len(i), device=left.device) - (count.cumsum(0) - count)[i]
    return i, order[begin[i] + nth]


def _bounds(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest chosen value of each row; each row has one."""
    low = values.masked_fill(~chosen, torch.iinfo(values.dtype).max).amin(dim=1)
    high = values.masked_fill(~chosen, torch.iinfo(values.dtype).min).amax(dim=1)
    return low, high


def _ordered(table: Tensor) -> tuple[Tensor, Tensor]:
    """How BlockMask writes a boolean table: the number of True columns of each row, and these columns first."""
    columns = table.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return table.sum(dim=-1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None]
