"""Tokens, pairs and scored positions of assumed lengths against what packing makes of such sequences."""

import numpy as np
import pytest
from tests.packed import group_pieces, one_row

from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded, alone, conversation
from dirl.packing.rows import pack
from dirl.planning import layout_work
from dirl.planning.workload import (
    Lengths,
    decoding_work,
    group_load,
    response_load,
    rl_views,
    rows,
    sft_views,
)
from dirl.types import ModelSpec, Trajectory


def spec(block_size: int) -> ModelSpec:
    return ModelSpec(block_size, mask_token_id=9, stop_token_ids=(8,), pad_token_id=7, vocab_size=10)


def trajectory(prompt: int, response: int, block_size: int, per_step: int, index: int = 0) -> Trajectory:
    """A response that commits `per_step` tokens in every step, from the left."""
    total = -(-(prompt + response) // block_size) * block_size - prompt
    place = (np.arange(total) + prompt) % block_size
    first = np.where(np.arange(total) < -prompt % block_size, prompt % block_size, 0)
    steps = (place - first) // per_step + 1
    return Trajectory(
        prompt_id="p",
        sample_index=index,
        prompt_ids=(1,) * prompt,
        response_ids=(2,) * total,
        response_length=response,
        step_map=tuple(steps.tolist()),
        behaviour_logprobs=(-1.0,) * total,
        finish_reason="stop",
        policy_version=0,
    )


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("per_step", [1, 2, 4])
@pytest.mark.parametrize("prompt", [0, 8, 16])
def test_a_response_behind_a_prompt_of_whole_blocks_is_counted_exactly(
    block_size: int, per_step: int, prompt: int
) -> None:
    prompt *= block_size // 4
    lengths = Lengths(prompt, 80, per_step)
    load = response_load(lengths, block_size, *rl_views(lengths, block_size))
    (segment,) = group_pieces([trajectory(prompt, 80, block_size, per_step)], spec(block_size), [1.0], True)
    assert load.prompt + load.response == layout_work(one_row(segment))


@pytest.mark.parametrize("prompt", [13, 150, 1023])
def test_a_prompt_that_ends_within_a_block_is_counted_to_a_per_cent(prompt: int) -> None:
    lengths = Lengths(prompt, 500, 2)
    load = response_load(lengths, 4, *rl_views(lengths, 4))
    (segment,) = group_pieces([trajectory(prompt, 500, 4, 2)], spec(4), [1.0], True)
    real, ours = layout_work(one_row(segment)), load.prompt + load.response
    assert ours.scored == real.scored
    assert ours.tokens == pytest.approx(real.tokens, rel=0.01)
    assert ours.pairs == pytest.approx(real.pairs, rel=0.01)


@pytest.mark.parametrize(("group_size", "response", "budget"), [(8, 256, 16384), (8, 2000, 16384), (32, 1000, 32768)])
@pytest.mark.parametrize("share_prompt", [True, False])
def test_packed_groups_are_counted_to_three_per_cent(
    group_size: int, response: int, budget: int, share_prompt: bool
) -> None:
    lengths = Lengths(200, response, 2)
    # mean lengths as planned, single ones a third away: packing must fill its rows
    spread = np.random.default_rng(0).uniform(0.67, 1.33, (4, group_size))
    sizes = np.rint(response * spread / spread.mean()).astype(int)
    segments = [
        segment
        for group in sizes.tolist()
        for segment in group_pieces(
            [trajectory(200, n, 4, 2, i) for i, n in enumerate(group)],
            *(spec(4), [1.0] * group_size, share_prompt),
        )
    ]
    batches = pack(segments, budget)
    load = group_load(response_load(lengths, 4, *rl_views(lengths, 4)), group_size, budget, share_prompt)
    works = [layout_work(batch) for batch in batches]
    assert load.work.tokens * 4 == pytest.approx(sum(w.tokens for w in works), rel=0.03)
    assert load.work.pairs * 4 == pytest.approx(sum(w.pairs for w in works), rel=0.1)  # grows with the lengths' spread
    assert rows(load, 4, budget) <= len(batches) <= rows(load, 4, budget) * 1.1 + 1


@pytest.mark.parametrize(("response", "budget"), [(4000, 8192), (4000, 6000), (3000, 5000)])
@pytest.mark.parametrize("share_prompt", [True, False])
def test_split_responses_are_counted_to_three_per_cent(response: int, budget: int, share_prompt: bool) -> None:
    """Three tokens in a row for each of the response: its clean copy, and two steps for a block of 4."""
    lengths = Lengths(200, response, 2)
    group = [trajectory(200, response, 4, 2, i) for i in range(4)]
    batches = pack(group_pieces(group, spec(4), [1.0] * 4, share_prompt), budget)
    load = group_load(response_load(lengths, 4, *rl_views(lengths, 4)), 4, budget, share_prompt)
    works = [layout_work(batch) for batch in batches]
    assert load.work.tokens == pytest.approx(sum(w.tokens for w in works), rel=0.03)
    assert load.work.pairs == pytest.approx(sum(w.pairs for w in works), rel=0.03)
    assert load.work.scored == sum(w.scored for w in works) == 4 * response
    assert load.work.tokens > 1.1 * 4 * (200 + 3 * response) and load.longest <= max(map(len, batches)) <= budget


@pytest.mark.parametrize(
    ("prompt", "response", "budget"), [(200, 4000, 4096), (200, 4000, 1024), (4000, 800, 4096), (5000, 800, 4096)]
)
@pytest.mark.parametrize("share_prompt", [True, False])
def test_rows_over_the_budget_are_as_long_and_as_many_as_planned(
    prompt: int, response: int, budget: int, share_prompt: bool
) -> None:
    """The last view alone is over the budget, with the clean tokens and the prompt that it attends to."""
    lengths = Lengths(prompt, response, 2)
    group = [trajectory(prompt, response, 4, 2, i) for i in range(4)]
    batches = pack(group_pieces(group, spec(4), [1.0] * 4, share_prompt), budget)
    load = group_load(response_load(lengths, 4, *rl_views(lengths, 4)), 4, budget, share_prompt)
    assert load.longest == pytest.approx(max(map(len, batches)), rel=0.01)
    assert load.longest > budget
    assert load.work.tokens == pytest.approx(sum(map(len, batches)), rel=0.03)
    assert rows(load, 1, budget) == len(batches)


@pytest.mark.parametrize(
    "noise",
    [
        NoiseConfig(),
        NoiseConfig(views_per_block=2, complementary=True, t_max=0.999),
        NoiseConfig(t_min=0.3, t_max=0.3),
        NoiseConfig(noise_scope="sequence", t_min=0.2, t_max=0.8),
    ],
)
@pytest.mark.parametrize("size", [1, 4])
def test_expected_views_of_a_conversation_are_the_mean_of_drawn_ones(size: int, noise: NoiseConfig) -> None:
    lengths = Lengths(20, 400, 1)
    load = response_load(lengths, size, *sft_views(lengths, size, noise))
    encoded = Encoded(input_ids=[1] * 420, loss_mask=[False] * 20 + [True] * 400, complete=True)
    draws = 300 if size > 1 else 1
    real = [
        layout_work(one_row(alone(conversation(encoded, spec(size), noise, np.random.default_rng([7, i]))[0])))
        for i in range(draws)
    ]
    ours = load.prompt + load.response
    # 300 draws of 100 blocks: the means are known to about one per cent
    assert ours.tokens == pytest.approx(sum(w.tokens for w in real) / draws, rel=0.02)
    assert ours.pairs == pytest.approx(sum(w.pairs for w in real) / draws, rel=0.03)
    assert ours.scored == pytest.approx(sum(w.scored for w in real) / draws, rel=0.04)


def test_decoding_takes_a_forward_for_each_step_and_one_to_keep_the_keys() -> None:
    # 2 blocks of 4 behind a prompt of one block, 2 tokens a step: 2 steps and 1 more for each block
    work = decoding_work(Lengths(4, 8, 2), 4)
    assert work.tokens == 2 * 3 * 4
    assert work.pairs == 3 * (4 * 8) + 3 * (4 * 12)
    assert work.scored == 2 * (4 + 2)
