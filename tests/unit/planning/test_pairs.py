"""Visible pairs by counting runs, against the dense predicate."""

import pytest
import torch
from tests.packed import group_pieces
from tests.tiny import TinyModel, prompt, sample_groups

from dirl.attention import dense_mask
from dirl.batches import Layout
from dirl.packing.rows import empty_batch, pack
from dirl.planning import visible_pairs
from dirl.types import DecodingParams


def random_layout(seed: int, tokens: int) -> Layout:
    """Any ids in any order: the predicate asks for nothing else."""
    generator = torch.Generator().manual_seed(seed)
    return Layout(*(torch.randint(0, high, (tokens,), generator=generator) for high in (3, 4, 5, 3)))


@pytest.mark.parametrize("seed", range(10))
def test_pairs_of_any_layout_are_those_of_the_dense_mask(seed: int) -> None:
    layout = random_layout(seed, 50 + 17 * seed)
    assert visible_pairs(layout) == int(dense_mask(layout).sum())


@pytest.mark.parametrize("block_size", [1, 4])
def test_pairs_of_packed_groups_are_those_of_the_dense_mask(block_size: int) -> None:
    source = TinyModel(block_size=block_size)
    spec = source.describe().spec
    groups = sample_groups(source, [prompt(9), prompt(3)], 3, DecodingParams(threshold=0.5, max_response_tokens=14))
    segments = [s for group in groups for s in group_pieces(group, spec, [1.0] * 3, True)]
    batches = pack(segments, 100)
    assert len(batches) > 1
    for batch in batches:
        assert visible_pairs(batch.layout) == int(dense_mask(batch.layout).sum())


def test_a_block_alone_and_a_row_without_tokens() -> None:
    spec = TinyModel(block_size=4).describe().spec
    assert visible_pairs(empty_batch(spec).layout) == 16
    assert visible_pairs(Layout(*(torch.zeros(0, dtype=torch.long) for _ in range(4)))) == 0
