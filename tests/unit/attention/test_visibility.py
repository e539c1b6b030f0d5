"""The visibility predicate against hand-drawn pictures, the rule pair by pair, and what it must never do."""

import random

import pytest
import torch
from tests import reference
from tests.reference import Token
from torch import Tensor

from dirl.attention import dense_mask, visible
from dirl.batches import Layout

SEEDS = range(6)
BLOCK = 2


def layout_of(tokens: list[Token]) -> Layout:
    return Layout(*torch.tensor(tokens).T.contiguous())


def blocks(*runs: str) -> list[Token]:
    """BLOCK tokens for each run, written as digits of group, branch, block, view."""
    return [Token(*map(int, run)) for run in runs for _ in range(BLOCK)]


def picture(text: str) -> Tensor:
    """One line a query block, one mark a key block: # is seen, . is not."""
    rows = torch.tensor([[mark == "#" for mark in line] for line in text.split()])
    return rows.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def random_tokens(seed: int) -> list[Token]:
    """Tokens at any places in any order: the predicate must not lean on how packing orders them."""
    rng = random.Random(seed)
    return [Token(rng.randint(0, 1), rng.randint(0, 2), rng.randint(0, 3), rng.randint(0, 2)) for _ in range(120)]


# ------------------------------------------------------------------------------------------- pictures


def test_a_clean_sequence_is_block_causal() -> None:
    drawn = """
        #..
        ##.
        ###
    """
    assert torch.equal(dense_mask(layout_of(blocks("0000", "0010", "0020"))), picture(drawn))


def test_sft_views_see_the_clean_blocks_before_them_and_themselves() -> None:
    """Clean blocks 0 to 2, two views of block 1, two of block 2, one of block 3 (whose clean copy nobody needs)."""
    runs = blocks("0000", "0010", "0020", "0011", "0012", "0021", "0022", "0031")
    drawn = """
        #.......
        ##......
        ###.....
        #..#....
        #...#...
        ##...#..
        ##....#.
        ###....#
    """
    assert torch.equal(dense_mask(layout_of(runs)), picture(drawn))


def test_responses_share_the_prompt_and_nothing_else() -> None:
    """Prompt of blocks 0 and 1; both responses with clean block 2 and steps of blocks 2 and 3.

    They stand at the same absolute blocks and views: the branch alone keeps them apart.
    """
    runs = blocks("0000", "0010", "0120", "0121", "0122", "0131", "0220", "0221", "0231")
    drawn = """
        #........
        ##.......
        ###......
        ##.#.....
        ##..#....
        ###..#...
        ##....#..
        ##.....#.
        ##....#.#
    """
    assert torch.equal(dense_mask(layout_of(runs)), picture(drawn))


def test_a_prompt_shorter_than_a_block_leaves_the_branches_alone() -> None:
    runs = blocks("0100", "0101", "0111", "0200", "0201")
    drawn = """
        #....
        .#...
        #.#..
        ...#.
        ....#
    """
    assert torch.equal(dense_mask(layout_of(runs)), picture(drawn))


def test_groups_of_one_row_are_blind_to_one_another() -> None:
    runs = blocks("0000", "0110", "0111", "1000", "1110", "1111")
    drawn = """
        #.....
        ##....
        #.#...
        ...#..
        ...##.
        ...#.#
    """
    assert torch.equal(dense_mask(layout_of(runs)), picture(drawn))


# ---------------------------------------------------------------------------------- the rule, pair by pair


@pytest.mark.parametrize("seed", SEEDS)
def test_the_dense_mask_is_the_rule_of_each_pair(seed: int) -> None:
    tokens = random_tokens(seed)
    found = dense_mask(layout_of(tokens))
    assert found.dtype == torch.bool
    assert torch.equal(found, reference.dense_mask(tokens))


def test_one_view_of_everything_is_the_block_causal_mask_of_the_engine() -> None:
    layout = layout_of([Token(0, 0, i // 4, 0) for i in range(11)])
    assert torch.equal(dense_mask(layout), reference.block_causal_mask(11, 4))


def test_the_predicate_broadcasts_over_batches_of_layouts() -> None:
    one, other = (layout_of(random_tokens(seed)) for seed in (0, 1))
    both = Layout(*(torch.stack(pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True)))
    found = visible(both[:, :, None], both[:, None, :])
    assert torch.equal(found, torch.stack([dense_mask(one), dense_mask(other)]))


# ------------------------------------------------------------------------------------- what must never be


def pairs(seed: int) -> tuple[list[Token], list[tuple[Token, Token]]]:
    """The tokens, and (query, key) of each pair that is seen."""
    tokens = random_tokens(seed)
    seen = dense_mask(layout_of(tokens)).nonzero().tolist()
    return tokens, [(tokens[q], tokens[k]) for q, k in seen]


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_tokens_never_see_noised_tokens(seed: int) -> None:
    assert not [(q, k) for q, k in pairs(seed)[1] if q.view == 0 and k.view > 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_branches_never_see_one_another(seed: int) -> None:
    assert not [(q, k) for q, k in pairs(seed)[1] if k.branch not in (0, q.branch)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_prompt_never_sees_a_response(seed: int) -> None:
    assert not [(q, k) for q, k in pairs(seed)[1] if q.branch == 0 and k.branch != 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_sees_a_later_block_or_another_group(seed: int) -> None:
    assert not [(q, k) for q, k in pairs(seed)[1] if k.block > q.block or k.group != q.group]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_noised_view_sees_of_its_own_block_only_itself(seed: int) -> None:
    same_block = [(q, k) for q, k in pairs(seed)[1] if q.view > 0 and k.block == q.block]
    assert same_block and all(q == k for q, k in same_block)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_token_sees_itself_so_no_row_of_the_softmax_is_empty(seed: int) -> None:
    assert dense_mask(layout_of(random_tokens(seed))).diagonal().all()
