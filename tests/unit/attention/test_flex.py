"""The BlockMask and the mask_mod of packed layouts, against the attention rule written out pair by pair."""

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import jaxtyped
from tests.packed import group_pieces
from tests.typechecker import check
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from dirl.attention import dense_mask, flex, visible
from dirl.attention.flex import flex_mask
from dirl.attention.intervals import key_intervals
from dirl.batches import Layout
from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded, alone, conversation
from dirl.packing.rows import pack
from dirl.types import ModelSpec, Trajectory

SHAPED = partial(jaxtyped, typechecker=check)
"""Not by the import hook: what `mask_mod` returns is for the compiler, which follows no check."""
flex_forward, mask_mod, tile_pairs = SHAPED(flex.flex_forward), SHAPED(flex.mask_mod), SHAPED(flex.tile_pairs)

SEEDS = range(8)
Rows = list[tuple[int, int, int, int]]
"""(group, branch, block, view) of each token."""


def layout_of(rows: Rows) -> Layout:
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
    """(partial, full) tiles of the BlockMask as booleans."""
    return listed(flex_mask(layout, tile))


def listed(mask: BlockMask) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial, full) tiles as booleans, read from the lists by hand."""
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
    partial, full = tables(layout_of(rows), tile)
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
def test_tiles_stay_exact_whatever_the_order_of_the_stretches(seed: int) -> None:
    """Packing puts the prompt first and the views last; nothing leans on that."""
    rows = random_rows(seed)
    stretches = list(dict.fromkeys(row[:2] if row[3] == 0 else row for row in rows))
    random.Random(seed).shuffle(stretches)
    place = {stretch: i for i, stretch in enumerate(stretches)}
    assert_exact(sorted(rows, key=lambda row: place[row[:2] if row[3] == 0 else row]), 4)


@pytest.mark.parametrize("seed", range(100))
def test_tiny_tiles_of_few_kinds_of_tokens_are_exact(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [tuple(rng.randint(0, n) for n in (1, 2, 2, 1)) for _ in range(rng.randint(1, 6))]
    rows = [kind for kind in rng.choices(kinds, k=12) for _ in range(rng.randint(1, 5))]
    assert_exact(sorted(rows, key=lambda row: (row[3] > 0, row)), 2)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 1, 0, 1), (0, 1, 1, 1), (0, 1, 0, 1)],
        [(0, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0)],
        [(0, 1, 1, 0), (0, 1, 0, 0)],
    ],
    ids=["a view", "the clean copy of a branch", "clean blocks out of order"],
)
def test_a_row_that_packing_would_not_make_is_refused(rows: Rows) -> None:
    with pytest.raises(RuntimeError, match="lies in pieces"):
        flex_mask(layout_of(rows))


def test_the_tiles_of_a_hand_drawn_layout() -> None:
    """Prompt of 2 blocks, responses of 2 and 1 blocks, one noised view of each response block; B = tile = 2."""
    branch_block_view = ["000", "010", "120", "130", "121", "131", "220", "221"]
    runs = [(0, *map(int, run)) for run in branch_block_view]
    picture = ["#.......", "##......", "###.....", "####....", "##..#...", "###..#..", "##....#.", "##.....#"]
    partial, full = tables(layout_of([run for run in runs for _ in range(2)]), 2)
    assert not partial.any()
    assert full.tolist() == [[mark == "#" for mark in line] for line in picture]


def test_clean_tiles_of_a_long_sequence_are_full_below_the_diagonal() -> None:
    partial, full = assert_exact([(0, int(i >= 20), i // 4, 0) for i in range(128)], 16)
    assert (partial, full) == (8, 28)


def test_blocks_longer_than_a_tile_make_full_tiles_on_the_diagonal() -> None:
    rows = [(0, 1, i // 24, 0) for i in range(96)] + [(0, 1, i // 24, 1) for i in range(96)]
    assert assert_exact(rows, 8)[0] == 0


def test_a_last_tile_that_lacks_tokens_is_never_full() -> None:
    partial, full = tables(layout_of([(0, 0, 0, 0)] * 7), 4)
    assert full.tolist() == [[True, False], [False, False]]
    assert partial.tolist() == [[False, True], [True, True]]


def test_key_side_lists_are_the_transpose_that_the_backward_reads() -> None:
    mask = flex_mask(layout_of(random_rows(3)), 16)
    partial, full = tables(layout_of(random_rows(3)), 16)
    assert mask.q_num_blocks[0, 0].tolist() == partial.sum(dim=0).tolist()
    assert mask.full_q_num_blocks[0, 0].tolist() == full.sum(dim=0).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_mod_of_all_pairs_is_the_rule(seed: int) -> None:
    rows = random_rows(seed)
    index = torch.arange(len(rows))
    batch = torch.zeros((), dtype=torch.long)
    found = mask_mod(*key_intervals(layout_of(rows)))(batch, batch, index[:, None], index[None, :])
    assert torch.equal(found, oracle(rows))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_intervals_of_a_query_do_not_overlap(seed: int) -> None:
    """Else a tile's pairs would be counted twice and a partial tile called full."""
    rows = random_rows(seed)
    begin, end = key_intervals(layout_of(rows))
    assert torch.equal((end - begin).sum(0), oracle(rows).sum(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_visible_pairs_of_each_tile_are_counted(seed: int) -> None:
    rows, tile = random_rows(seed), 16
    found = tile_pairs(*key_intervals(layout_of(rows)), tile)
    pairs = F.pad(oracle(rows).long(), (0, -len(rows) % tile) * 2)
    assert torch.equal(found, pairs.unflatten(1, (-1, tile)).unflatten(0, (-1, tile)).sum((1, 3)))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_is_the_one_that_pytorch_makes_from_the_predicate(seed: int) -> None:
    layout = layout_of(random_rows(seed))
    ours = flex_mask(layout)
    theirs = create_block_mask(
        lambda batch, head, query, key: visible(layout[query], layout[key]), 1, 1, len(layout), len(layout), "cpu"
    )
    for found, wanted in zip(listed(ours), listed(theirs), strict=True):
        assert torch.equal(found, wanted)


def test_mask_of_a_length_that_is_no_multiple_of_the_tile_has_that_length() -> None:
    assert flex_mask(layout_of([(0, 0, i, 0) for i in range(130)])).shape == (1, 1, 130, 130)


@pytest.mark.parametrize("tile", [16, 128])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flex_forward_is_sdpa_under_the_dense_mask(seed: int, tile: int) -> None:
    rows = random_rows(seed)[:300]
    query, key, value, wanted = attention_case(rows, seed)
    found = flex_forward(query, key, value, flex_mask(layout_of(rows), tile), 0.3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("width", [1, 8, 15, 16])
def test_heads_too_narrow_for_the_kernels_are_widened_by_what_changes_nothing(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def kernel(query: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        asked.append((query.shape[-1], options["kernel_options"]["FORCE_USE_FLEX_ATTENTION"]))
        return flex_attention(query, *rest, **options)

    rows = random_rows(3)[:200]
    query, key, value, _ = attention_case(rows, 3, width)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=oracle(rows), enable_gqa=True)
    monkeypatch.setattr(flex, "flex_attention", kernel)
    found = flex_forward(query, key, value, flex_mask(layout_of(rows)))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert asked == [(16, True)]


LENGTHS = (1000, 1001, 384, 4, 640, 129, 128, 1300, 2048, 250, 1024, 64, 513, 2047)
"""Multiples of the tile and others, rows of a single tile, and an empty batch's row of one block."""


def test_rows_of_many_lengths_are_compiled_three_times(traced: None) -> None:
    """Once for the first length, once for all lengths, once for rows of a single tile."""
    for length in LENGTHS:
        rows = [(0, 0, i // 4, 0) for i in range(length // 2)]
        rows += [(0, 1 + i // 400, (length // 2 + i % 400) // 4, 1) for i in range(length - len(rows))]
        query, key, value, wanted = attention_case(rows, seed=length)
        found = flex_forward(query, key, value, flex_mask(layout_of(rows)), 0.3)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 3


def test_one_process_compiles_for_more_kinds_of_inputs_than_dynamo_allows_by_itself(traced: None) -> None:
    """Two dtypes, with and without gradient, in each of the three ways of `test_rows_of_many_lengths`."""
    for dtype, grad, length in itertools.product((torch.float32, torch.float64), (True, False), (300, 400, 64)):
        rows = [(0, 0, i // 4, 0) for i in range(length)]
        query, key, value, wanted = (x.to(dtype) for x in attention_case(rows, seed=length))
        with torch.set_grad_enabled(grad):
            found = flex_forward(query, key, value, flex_mask(layout_of(rows)), 0.3)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] > torch._dynamo.config.recompile_limit


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs on a GPU, with its own options, but traced only: no kernel is generated."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    flex._compiled.cache_clear()
    monkeypatch.setattr(flex, "flex_attention", flex._compiled())
    yield
    flex._compiled.cache_clear()


def attention_case(rows: Rows, seed: int, width: int = 16) -> tuple[torch.Tensor, ...]:
    """(query, key, value, SDPA's answer) with 4 query heads and 2 key heads."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, len(rows), width, generator=generator) for heads in (4, 2, 2))
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
        mask = flex_mask(long_layout(tokens), tile)
    assert elements.largest <= 4 * tokens + 2 * (tokens // tile + 1) ** 2, "a tensor grows faster than T + tiles^2"
    assert elements.total < tokens * tokens / tile, "the work grows like pairs of tile and token"
    assert mask.to_dense().sum() > 0


@pytest.mark.parametrize(("layout", "tile", "message"), [([(0, 0, 0, 0)], 0, "tile=0"), ([], 128, "0 tokens")])
def test_a_mask_of_nothing_is_refused(layout: list, tile: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flex_mask(Layout(*torch.tensor(layout, dtype=torch.long).view(-1, 4).T), tile)


def test_building_a_mask_never_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever asks for one, as a host sync does, raises."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        layout = Layout(*(mode.from_tensor(ids) for ids in vars(long_layout(1000)).values()))
        assert flex_mask(layout).kv_indices.shape == (1, 1, 8, 8)


# -------------------------------------------------------------------------------------- what packing makes

SPEC = ModelSpec(block_size=4, mask_token_id=50, stop_token_ids=(51,), pad_token_id=51, vocab_size=64)


def packed_groups(seed: int) -> list[Layout]:
    """Rows of groups of 1 to 5 responses to prompts of 0 to 5 blocks and a part of one."""
    rng = np.random.default_rng(seed)
    segments = []
    for _ in range(3):
        prompt = tuple(rng.integers(0, 50, rng.integers(1, 24)).tolist())
        group = [trajectory(prompt, rng, sample) for sample in range(rng.integers(1, 6))]
        segments += group_pieces(group, SPEC, [1.0] * len(group), share_prompt=bool(seed % 2))
    return [row.layout for row in pack(segments, 300)]


def trajectory(prompt: tuple[int, ...], rng: np.random.Generator, sample: int) -> Trajectory:
    blocks = [min(4, 4 - len(prompt) % 4), *[4] * rng.integers(0, 12)]
    ids = rng.integers(0, 50, sum(blocks)).tolist()
    steps = [int(s) for size in blocks for s in rng.permutation(np.arange(size) // rng.integers(1, 3) + 1)]
    return Trajectory("p", sample, prompt, tuple(ids), len(ids), tuple(steps), (0.0,) * len(ids), "length", 0)


def packed_conversations(seed: int) -> list[Layout]:
    rng = np.random.default_rng(seed)
    conversations = [Encoded(rng.integers(0, 50, n).tolist(), [i > n // 3 for i in range(n)]) for n in (5, 40, 64, 90)]
    config = NoiseConfig(views_per_block=1 + seed % 2)
    return [b.layout for b in pack([alone(conversation(c, SPEC, config, rng)[0]) for c in conversations], 300)]


@pytest.mark.parametrize("make", [packed_groups, packed_conversations])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_that_packing_makes_has_exact_tiles(make: Callable[[int], list[Layout]], seed: int) -> None:
    for layout in make(seed):
        rows = [tuple(row) for row in torch.stack(list(vars(layout).values()), dim=1).tolist()]
        assert torch.equal(oracle(rows), dense_mask(layout))
        assert_exact(rows, 16)
