"""A step map becomes the views that the model saw: worked by hand, and by what must hold for any map."""

import random
from typing import Any

import numpy as np
import pytest

from dirl.batches import IGNORE
from dirl.diffusion.views import Views, complementary_views, full_views, merged, step_views
from dirl.types import Trajectory

M, X = 99, IGNORE


def trajectory(prompt: tuple[int, ...], response: tuple[int, ...], steps: tuple[int, ...], **more: Any) -> Trajectory:
    values = {
        "prompt_id": "p",
        "sample_index": 3,
        "prompt_ids": prompt,
        "response_ids": response,
        "response_length": len(response),
        "step_map": steps,
        "behaviour_logprobs": tuple(-0.5 for _ in response),
        "finish_reason": "length",
        "policy_version": 0,
    }
    return Trajectory(**values | more)


def test_two_blocks_by_hand() -> None:
    """Block 1: 12 first, then 10 and 13 at once, then 11. Block 2: all in one step."""
    views = step_views(trajectory((1, 2, 3, 4), (10, 11, 12, 13, 14, 15, 16, 17), (2, 3, 1, 2, 1, 1, 1, 1)), 4, M)
    assert views.first_block == 1
    assert views.blocks.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert views.view_block.tolist() == [0, 0, 0, 1]
    assert views.view_number.tolist() == [1, 2, 3, 1]
    assert views.inputs.tolist() == [[M, M, M, M], [M, M, 12, M], [10, M, 12, 13], [M, M, M, M]]
    assert views.targets.tolist() == [[X, X, 12, X], [10, X, X, 13], [X, 11, X, X], [14, 15, 16, 17]]
    assert views.response_index.tolist() == [[-1, -1, 2, -1], [0, -1, -1, 3], [-1, 1, -1, -1], [4, 5, 6, 7]]


def test_the_tail_of_the_prompt_is_visible_in_every_view_of_the_first_block_and_never_scored() -> None:
    views = step_views(trajectory((1, 2, 3, 4, 5), (10, 11, 12), (2, 1, 2)), 4, M)
    assert views.first_block == 1
    assert views.blocks.tolist() == [[5, 10, 11, 12]]
    assert views.inputs.tolist() == [[5, M, M, M], [5, M, 11, M]]
    assert views.targets.tolist() == [[X, X, 11, X], [X, 10, X, 12]]
    assert views.response_index.tolist() == [[-1, -1, 1, -1], [-1, 0, -1, 2]]


def test_a_prompt_shorter_than_a_block_lies_in_the_first_block_whole() -> None:
    views = step_views(trajectory((1, 2), (10, 11), (1, 2)), 4, M)
    assert views.first_block == 0
    assert views.inputs.tolist() == [[1, 2, M, M], [1, 2, 10, M]]


def test_blocks_of_one_token_have_one_view_each() -> None:
    views = step_views(trajectory((1,), (10, 11), (1, 1)), 1, M)
    assert views.first_block == 1
    assert views.inputs.tolist() == [[M], [M]] and views.targets.tolist() == [[10], [11]]


@pytest.mark.parametrize("seed", range(10))
def test_every_token_is_scored_once_at_its_step_with_just_the_earlier_ones_shown(seed: int) -> None:
    rng = random.Random(seed)
    size, head = rng.choice([2, 4, 8]), rng.randint(1, 9)
    length = -head % size + size * rng.randint(1, 3)
    prompt, response = tuple(range(head)), tuple(range(100, 100 + length))
    steps = random_steps(rng, head, length, size)
    views = step_views(trajectory(prompt, response, steps), size, M)

    index = views.response_index
    assert sorted(index[index >= 0].tolist()) == list(range(length))
    for v, k in enumerate(views.view_block):
        for column in range(size):
            i = (views.first_block + k) * size + column - head  # its place in the response
            step, shown = (0 if i < 0 else steps[i]), (prompt + response)[head + i]
            assert views.inputs[v, column] == (shown if step < views.view_number[v] else M)
            assert views.targets[v, column] == (shown if step == views.view_number[v] else X)
            assert index[v, column] == (i if step == views.view_number[v] else -1)


def random_steps(rng: random.Random, head: int, length: int, size: int) -> tuple[int, ...]:
    """A step map without gaps: in each block, the steps 1, 2, ... all commit something."""
    steps: list[int] = []
    while len(steps) < length:
        room = size - (head + len(steps)) % size
        top = rng.randint(1, room)
        block = [*range(1, top + 1), *(rng.randint(1, top) for _ in range(room - top))]
        rng.shuffle(block)
        steps += block
    return tuple(steps)


def test_as_many_views_as_denoising_steps() -> None:
    example = trajectory((1, 2, 3), (10, 11, 12, 13, 14), (1, 3, 2, 1, 1), finish_reason="stop", response_length=2)
    assert len(step_views(example, 4, M).inputs) == example.denoising_steps(4) == 4


def test_a_step_that_commits_nothing_is_an_error_that_names_trajectory_step_and_block() -> None:
    with pytest.raises(ValueError, match=r"trajectory p#3: step 2 of block 2 commits no token.*another block size"):
        step_views(trajectory((1, 2, 3, 4), (10,) * 8, (1, 2, 3, 1, 3, 1, 1, 1)), 4, M)


def test_the_arrays_are_whole_numbers() -> None:
    views = step_views(trajectory((1, 2), (10, 11), (1, 2)), 4, M)
    assert all(x.dtype == np.int64 for x in (views.blocks, views.inputs, views.targets, views.response_index))


# ------------------------------------------------------------------------------------------- merged step views


def test_merged_steps_show_what_the_first_of_them_saw_and_score_the_tokens_of_all() -> None:
    """Block 1 has steps 1 to 3, of which 1 and 2 are one view; block 2 has one step."""
    views = step_views(trajectory((1, 2, 3, 4), (10, 11, 12, 13, 14, 15, 16, 17), (2, 3, 1, 2, 1, 1, 1, 1)), 4, M)
    found = merged(views, 2)
    assert (found.view_block.tolist(), found.view_number.tolist()) == ([0, 0, 1], [1, 2, 1])
    assert found.inputs.tolist() == [[M, M, M, M], [10, M, 12, 13], [M, M, M, M]]
    assert found.targets.tolist() == [[10, X, 12, 13], [X, 11, X, X], [14, 15, 16, 17]]
    assert found.response_index.tolist() == [[0, -1, 2, 3], [-1, 1, -1, -1], [4, 5, 6, 7]]


def test_one_step_merged_with_none_is_what_it_was() -> None:
    views = step_views(trajectory((1, 2, 3, 4, 5), (10, 11, 12), (2, 1, 2)), 4, M)
    assert same(views, merged(views, 1))


@pytest.mark.parametrize("seed", range(5))
def test_all_steps_of_a_block_merged_are_its_full_view(seed: int) -> None:
    rng = random.Random(seed)
    size, head = rng.choice([2, 4, 8]), rng.randint(1, 9)
    length = -head % size + size * rng.randint(1, 3)
    example = trajectory(tuple(range(head)), tuple(range(100, 100 + length)), random_steps(rng, head, length, size))
    assert same(merged(step_views(example, size, M), size), full_views(example, size, M))


def same(one: Views, other: Views) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


# --------------------------------------------------------------------------------------------- views by masks


def test_a_full_view_masks_and_scores_all_of_a_block_but_the_tail_of_the_prompt() -> None:
    views = full_views(trajectory((1, 2, 3, 4, 5), (10, 11, 12, 13, 14, 15, 16), (3, 1, 2, 1, 4, 3, 2)), 4, M)
    assert views.first_block == 1 and views.view_block.tolist() == [0, 1] and views.view_number.tolist() == [1, 1]
    assert views.inputs.tolist() == [[5, M, M, M], [M, M, M, M]]
    assert views.targets.tolist() == [[X, 10, 11, 12], [13, 14, 15, 16]]
    assert views.response_index.tolist() == [[-1, 0, 1, 2], [3, 4, 5, 6]]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pairs", [1, 3])
def test_a_pair_of_complementary_views_scores_every_token_once_where_it_is_masked(seed: int, pairs: int) -> None:
    rng = random.Random(seed)
    size, head = rng.choice([1, 2, 4, 8]), rng.randint(1, 9)
    length = -head % size + size * rng.randint(1, 3)
    example = trajectory(tuple(range(head)), tuple(range(100, 100 + length)), (1,) * length)
    views = complementary_views(example, size, M, np.random.default_rng(seed), (0.2, 0.8), pairs)
    assert (views.view_block[1:] >= views.view_block[:-1]).all()
    assert ((views.targets != X) == (views.inputs == M)).all() and (views.targets != X).any(1).all()
    whole = views.blocks[views.view_block]
    assert (np.where(views.inputs == M, views.targets, views.inputs) == whole).all()
    for pair in range(pairs):
        own = views[(views.view_number - 1) // 2 == pair]
        index = own.response_index
        assert sorted(index[index >= 0].tolist()) == list(range(length))
        scored = own.response_index >= 0
        assert (own.targets[scored] == np.array(example.response_ids)[index[scored]]).all()


def test_positions_are_masked_by_the_rate_and_rates_differ_between_blocks() -> None:
    example = trajectory((), tuple(range(100, 100 + 32 * 500)), (1,) * 32 * 500)
    views = complementary_views(example, 32, M, np.random.default_rng(0), (0.2, 0.8))
    share = (views.inputs == M).mean(1)[views.view_number == 1]
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    # uniform on (0.2, 0.8): variance 0.03, and of 32 draws of rate t the mean of t (1 - t) / 32 is 0.0069
    assert share.var() == pytest.approx(0.03 + 0.0069, abs=0.006)


def test_the_same_generator_draws_the_same_masks() -> None:
    example = trajectory((1,), tuple(range(100, 131)), (1,) * 31)
    first, again, other = (complementary_views(example, 8, M, np.random.default_rng(s), (0.2, 0.8)) for s in (1, 1, 2))
    assert same(first, again) and not same(first, other)
