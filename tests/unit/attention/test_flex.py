"""The BlockMask and the mask_mod of packed layouts, against the attention rule written out pair by pair."""

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dirl.attention import flex
from dirl.attention.flex import block_mask, flex_forward, mask_mod
from dirl.types import Layout

SEEDS = range(8)
Rows = list[tuple[int, int, int, int]]
"""(group, branch, block, view) of each token."""


def pack(rows: Rows) -> Layout:
    return Layout(*torch.tensor(rows).T.contiguous())


def random_rows(seed: int) -> Rows:
    """Groups of a prompt and branches; a branch is its clean blocks, then the noised views of some of them."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 4, 8])
    rows = []
    for group in range(rng.randint(1, 4)):
        prompt_blocks = rng.randint(0, 60 // size)
        rows += [(group, 0, block, 0) for block in range(prompt_blocks) for _ in range(size)]
        for branch in range(1, rng.randint(1, 4) + 1):
            blocks = range(prompt_blocks, prompt_blocks + rng.randint(1, 1 + 80 // size))
            rows += [(group, branch, block, 0) for block in blocks for _ in range(size)]
            views = [(block, view) for block in blocks for view in range(1, rng.randint(0, 3) + 1)]
            rows += [(group, branch, block, view) for block, view in views for _ in range(size)]
    return rows[: len(rows) - rng.randint(0, size - 1)]


def sees(q: tuple[int, int, int, int], k: tuple[int, int, int, int]) -> bool:
    """The attention rule for one query and one key."""
    (q_group, q_branch, q_block, q_view), (k_group, k_branch, k_block, k_view) = q, k
    if q_group != k_group:
        return False
    if k_view == 0 and k_branch in (0, q_branch) and k_block < q_block:
        return True
    return (q_branch, q_block, q_view) == (k_branch, k_block, k_view)


def oracle(rows: Rows) -> torch.Tensor:
    kinds = sorted(set(rows))
    kind = torch.tensor([kinds.index(row) for row in rows])
    return torch.tensor([[sees(q, k) for k in kinds] for q in kinds])[kind[:, None], kind]


def tile_fractions(dense: torch.Tensor, tile: int) -> torch.Tensor:
    """[tiles, tiles]: the visible pairs of each tile over tile * tile; tokens past the end see nothing."""
    pad = -len(dense) % tile
    count = (len(dense) + pad) // tile
    padded = F.pad(dense, (0, pad, 0, pad)).double()
    return padded.view(count, tile, count, tile).mean(dim=(1, 3))


def tables(layout: Layout, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial, full) tiles of the BlockMask as booleans, read from its lists by hand."""
    mask = block_mask(layout, tile)
    lists = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    found = []
    for numbers, indices in lists:
        table = torch.zeros(indices.shape[-2:], dtype=torch.bool)
        for row, number in enumerate(numbers[0, 0].tolist()):
            table[row, indices[0, 0, row, :number].long()] = True
        found.append(table)
    return found[0], found[1]


def assert_exact(rows: Rows, tile: int) -> tuple[int, int]:
    """Each tile is listed as what it is; returns how many are partial and full."""
    partial, full = tables(pack(rows), tile)
    fractions = tile_fractions(oracle(rows), tile)
    assert not (partial & full).any()
    assert (partial | full)[fractions > 0].all(), "a tile with a visible pair would be skipped"
    assert (fractions[full] == 1).all(), "a tile called full hides a pair"
    assert (fractions[partial] > 0).all(), "an empty tile would be computed"
    assert (fractions[partial] < 1).all(), "a full tile would ask the mask_mod"
    return int(partial.sum()), int(full.sum())


@pytest.mark.parametrize("tile", [16, 32, 128])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_tile_is_empty_partial_or_full_exactly_as_its_pairs_say(seed: int, tile: int) -> None:
    assert_exact(random_rows(seed), tile)


@pytest.mark.parametrize("seed", SEEDS)
def test_tiles_stay_exact_when_tokens_stand_in_any_order(seed: int) -> None:
    rows = random_rows(seed)
    random.Random(seed).shuffle(rows)
    assert_exact(rows, 4)


@pytest.mark.parametrize("seed", range(100))
def test_tiny_tiles_of_few_kinds_of_tokens_are_exact(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [tuple(rng.randint(0, n) for n in (1, 2, 2, 1)) for _ in range(rng.randint(1, 6))]
    assert_exact([kind for kind in rng.choices(kinds, k=12) for _ in range(rng.randint(1, 5))], 2)


def test_the_tiles_of_a_hand_drawn_layout() -> None:
    """Prompt of 2 blocks, responses of 2 and 1 blocks, one noised view of each response block; B = tile = 2."""
    branch_block_view = ["000", "010", "120", "130", "121", "131", "220", "221"]
    runs = [(0, *map(int, run)) for run in branch_block_view]
    picture = ["#.......", "##......", "###.....", "####....", "##..#...", "###..#..", "##....#.", "##.....#"]
    partial, full = tables(pack([run for run in runs for _ in range(2)]), 2)
    assert not partial.any()
    assert full.tolist() == [[mark == "#" for mark in line] for line in picture]


def test_clean_tiles_of_a_long_sequence_are_full_below_the_diagonal() -> None:
    partial, full = assert_exact([(0, int(i >= 20), i // 4, 0) for i in range(128)], 16)
    assert (partial, full) == (8, 28)


def test_blocks_longer_than_a_tile_make_full_tiles_on_the_diagonal() -> None:
    rows = [(0, 1, i // 24, 0) for i in range(96)] + [(0, 1, i // 24, 1) for i in range(96)]
    assert assert_exact(rows, 8)[0] == 0


def test_a_last_tile_that_lacks_tokens_is_never_full() -> None:
    partial, full = tables(pack([(0, 0, 0, 0)] * 7), 4)
    assert full.tolist() == [[True, False], [False, False]]
    assert partial.tolist() == [[False, True], [True, True]]


def test_key_side_lists_are_the_transpose_that_the_backward_reads() -> None:
    mask = block_mask(pack(random_rows(3)), 16)
    partial, full = tables(pack(random_rows(3)), 16)
    assert mask.q_num_blocks[0, 0].tolist() == partial.sum(dim=0).tolist()
    assert mask.full_q_num_blocks[0, 0].tolist() == full.sum(dim=0).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_mod_of_all_pairs_is_the_rule(seed: int) -> None:
    rows = random_rows(seed)
    index = torch.arange(len(rows))
    batch = torch.zeros((), dtype=torch.long)
    found = mask_mod(pack(rows))(batch, batch, index[:, None], index[None, :])
    assert torch.equal(found, oracle(rows))


def test_mask_of_a_length_that_is_no_multiple_of_the_tile_has_that_length() -> None:
    assert block_mask(pack([(0, 0, i, 0) for i in range(130)])).shape == (1, 1, 130, 130)


@pytest.mark.parametrize("tile", [16, 128])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flex_forward_is_sdpa_under_the_dense_mask(seed: int, tile: int) -> None:
    rows = random_rows(seed)[:300]
    query, key, value, wanted = attention_case(rows, seed)
    found = flex_forward(query, key, value, block_mask(pack(rows), tile), 0.3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # fp32 sums in another order


def test_one_compiled_graph_serves_more_lengths_than_dynamo_would_compile(
    compiled: Callable[..., torch.Tensor],
) -> None:
    for length in range(130, 380, 25):
        rows = (random_rows(1) * 4)[:length]
        query, key, value, wanted = attention_case(rows, seed=length)
        found = compiled(query, key, value, block_mask=block_mask(pack(rows)), scale=0.3, enable_gqa=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., torch.Tensor]]:
    """What runs on a GPU, with its own options, but traced only: no kernel is generated."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    flex._compiled.cache_clear()
    yield flex._compiled()
    flex._compiled.cache_clear()


def attention_case(rows: Rows, seed: int) -> tuple[torch.Tensor, ...]:
    """(query, key, value, SDPA's answer) with 4 query heads and 2 key heads."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, len(rows), 16, generator=generator) for heads in (4, 2, 2))
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=oracle(rows), scale=0.3, enable_gqa=True)
    return query, key, value, wanted


class Elements(TorchDispatchMode):
    """Counts the elements of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.total += tensor.numel()
                self.largest = max(self.largest, tensor.numel())
        return out


def long_layout(tokens: int) -> Layout:
    """Groups of 8192 tokens: a prompt of 1024, then 7 branches of 512 clean tokens and one view of them; B = 4."""
    index = torch.arange(tokens)
    place = index % 8192
    response = (place - 1024).clamp(min=-1)
    branch = torch.where(response < 0, 0, response // 1024 + 1)
    block = torch.where(response < 0, place, 1024 + response % 512) // 4
    view = torch.where(response < 0, 0, response % 1024 // 512)
    return Layout(index // 8192, branch, block, view)


def test_a_mask_of_65536_tokens_costs_far_less_than_their_pairs() -> None:
    tokens, tile = 65536, 128
    with Elements() as elements:
        mask = block_mask(long_layout(tokens), tile)
    assert elements.largest <= 4 * tokens + (tokens // tile) ** 2, "a tensor grows faster than T + tiles^2"
    assert elements.total < tokens * tokens / tile, "the work grows like pairs of tile and token"
    assert mask.to_dense().sum() > 0


@pytest.mark.parametrize(("layout", "tile", "message"), [([(0, 0, 0, 0)], 0, "tile=0"), ([], 128, "0 tokens")])
def test_a_mask_of_nothing_is_refused(layout: list, tile: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_mask(Layout(*torch.tensor(layout, dtype=torch.long).view(-1, 4).T), tile)
