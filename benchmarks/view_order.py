"""In which order should the views of a packed row stand? Tiles that FlexAttention computes, by order: a table.

    python -m benchmarks.view_order

The fewer tiles of 128 x 128 tokens hold a visible pair, the less attention costs. They are counted with the visibility
predicate itself, for one row of each load; 1.00 would be tiles of which every pair is visible. The first order is the
one that `dirl.packing.rows` makes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.record import save, show
from benchmarks.workload import Load, make_groups
from dirl.attention import visible
from dirl.attention.flex import TILE
from dirl.batches import Layout
from dirl.objectives import DiPO
from dirl.packing.rows import pack
from dirl.rl.steps import piece_groups, take_views
from dirl.types import ModelSpec

LOADS = {
    "B=4, 2 a step, 8 x 2000, prompt 150": Load(groups=2),
    "B=4, 1 a step, 8 x 256-2048, prompt 150": Load(tokens_per_step=1, groups=4, shortest=256, longest=2048),
    "B=4, 2 a step, 32 x 256-2048, prompt 1024": Load(group_size=32, prompt_tokens=1024, shortest=256, longest=2048),
    "B=4, 4 a step, 8 x 256, prompt 150": Load(tokens_per_step=4, groups=16, shortest=200, longest=300),
    "B=16, 2 a step, 8 x 2000, prompt 1024": Load(block_size=16, groups=4, prompt_tokens=1024),
    "B=32, 4 a step, 8 x 256-2048, prompt 150": Load(32, 4, groups=4, shortest=256, longest=2048),
}

Columns = Sequence[Tensor]
ORDERS: dict[str, Callable[[Layout, Tensor], Columns]] = {
    "branch: clean, views": lambda x, noised: (x.group_ids, x.branch_ids, noised, x.block_ids, x.view_ids),
    "group: clean, views": lambda x, noised: (x.group_ids, noised, x.branch_ids, x.block_ids, x.view_ids),
    "row: clean, views": lambda x, noised: (noised, x.group_ids, x.branch_ids, x.block_ids, x.view_ids),
    "views beside their block": lambda x, noised: (x.group_ids, x.branch_ids, x.block_ids, x.view_ids),
    "views by step": lambda x, noised: (x.group_ids, x.branch_ids, noised, x.view_ids, x.block_ids),
    "views of a group by block": lambda x, noised: (x.group_ids, noised * (1 + x.block_ids), x.branch_ids, x.block_ids),
}
"""The columns that the row is sorted by, the first one first."""


def main(token_budget: int = 16384) -> None:
    rows, table = [], []
    for name, load in LOADS.items():
        layout = one_row(load, token_budget)
        pairs = sum(int(seen.sum()) for seen in _seen(layout)) * load.block_size**2
        counts = {order: tiles(_sorted(layout, columns), load.block_size) for order, columns in ORDERS.items()}
        for order, (computed, partial) in counts.items():
            ratio = computed * TILE**2 / pairs
            rows.append({"load": name, "order": order, "tiles": computed, "partial": partial, "ratio": ratio})
        table.append([name, *(f"{computed * TILE**2 / pairs:.2f}" for computed, _ in counts.values())])
    show("Pairs in computed tiles / visible pairs, by the order of the row", ["load", *ORDERS], table)
    print(f"written: {save('view_order', {'token_budget': token_budget, 'tile': TILE}, rows)}")


def one_row(load: Load, token_budget: int) -> Layout:
    """A full row, each block of it as one token: all tokens of a block see the same."""
    spec = ModelSpec(load.block_size, mask_token_id=999, stop_token_ids=(998,), pad_token_id=998, vocab_size=1000)
    pieces = piece_groups(take_views(make_groups(load, spec), spec, DiPO()), spec, DiPO())
    layout = max((batch.layout for batch in pack(pieces, token_budget)), key=len)
    return layout[:: load.block_size]


def tiles(layout: Layout, block_size: int) -> tuple[int, int]:
    """How many tiles have a visible pair, and how many of these are partial."""
    size = TILE // block_size
    computed = partial = 0
    for seen in _seen(layout, size):
        pairs = torch.nn.functional.pad(seen.sum(0), (0, -len(layout) % size)).view(-1, size).sum(1)
        computed += int((pairs > 0).sum())
        partial += int(((pairs > 0) & (pairs < size * size)).sum())
    return computed, partial


def _seen(layout: Layout, size: int = TILE) -> list[Tensor]:
    """The dense mask, so many rows at a time."""
    return [visible(layout[i : i + size, None], layout[None, :]) for i in range(0, len(layout), size)]


def _sorted(layout: Layout, columns: Callable[[Layout, Tensor], Columns]) -> Layout:
    order = torch.arange(len(layout))
    for column in reversed(columns(layout, (layout.view_ids > 0).long())):
        order = order[column[order].argsort(stable=True)]
    return layout[order]


if __name__ == "__main__":
    main()
