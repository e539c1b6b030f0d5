"""A step map becomes the views that the model saw: worked by hand, and by what must hold for any map."""

import random
from typing import Any

import numpy as np
import pytest

from dirl.batches import IGNORE
from dirl.diffusion.views import step_views
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
