"""Optimizer steps of SFT under a schedule of block sizes: layout, ranks, epochs, validation."""

import numpy as np
import pytest

from dirl.batches import IGNORE, StepBatch
from dirl.data.sft_steps import SFTSteps
from dirl.diffusion.block_schedule import BlockSchedule
from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded
from dirl.types import ModelSpec

SPEC = ModelSpec(block_size=4, mask_token_id=9, stop_token_ids=(8,), pad_token_id=7, vocab_size=10)
EXAMPLES = [Encoded([1] * prompt + [2, 3, 8], [False] * prompt + [True] * 3) for prompt in range(2, 10)]


def steps(
    schedule: BlockSchedule | None, shuffle: bool = True, rank: int = 0, world: int = 1, **options: int
) -> SFTSteps:
    return SFTSteps(EXAMPLES, SPEC, NoiseConfig(), 4, 10**6, shuffle, 0, rank, world, schedule, **options)


def size(step: StepBatch) -> int:
    """Of the blocks, as positions and block numbers tell it."""
    (row,) = step.micro_batches
    (found,) = {int(s) for s in range(1, 9) if bool((row.position_ids // s == row.block_ids).all())}
    return found


def test_two_steps_an_epoch_are_counted_on() -> None:
    made = steps(BlockSchedule([1, 2, 4], [3, 2]))
    assert len(made) == 2
    keys = [(epoch, step) for epoch in range(4) for step in range(2)]
    assert [made[key].block_size for key in keys] == [1, 1, 1, 2, 2, 4, 4, 4]
    assert [size(made[key]) for key in keys] == [1, 1, 1, 2, 2, 4, 4, 4]


def test_of_epochs_that_are_cut_short_the_steps_that_are_taken_count() -> None:
    made = steps(BlockSchedule([1, 2, 4], [3, 2]), epoch_steps=1)
    assert [made[epoch, 0].block_size for epoch in range(7)] == [1, 1, 1, 2, 2, 4, 4]


def test_ranks_have_the_same_size_and_together_the_conversations_of_one() -> None:
    schedule = BlockSchedule([1, 4], 1)
    for key, wanted in (((0, 0), 1), ((0, 1), 4)):
        whole, *parts = (steps(schedule, rank=r, world=w)[key] for r, w in ((0, 1), (0, 2), (1, 2)))
        assert [part.block_size for part in parts] == [wanted, wanted]
        assert sum(part.loss_divisor for part in parts) == whole.loss_divisor
        scored = [
            sorted(part.micro_batches[0].loss_weights[part.micro_batches[0].target_ids != IGNORE].tolist())
            for part in (whole, *parts)
        ]
        assert sorted(scored[1] + scored[2]) == scored[0]


def test_validation_has_the_models_block_size_and_says_nothing_of_a_schedule() -> None:
    made = steps(None, shuffle=False)
    assert made[0, 0].block_size is None and size(made[0, 0]) == 4


def test_blocks_of_one_score_every_response_token_once_with_weight_one() -> None:
    step = steps(BlockSchedule([1, 4], 1))[0, 0]
    (row,) = step.micro_batches
    scored = row.target_ids != IGNORE
    assert int(scored.sum()) == step.loss_divisor == 4 * 3
    assert np.array_equal(row.loss_weights[scored].numpy(), np.ones(12))


@pytest.mark.parametrize("noise", [NoiseConfig(t_min=0.3, t_max=0.7), NoiseConfig(views_per_block=2, t_max=0.9)])
def test_blocks_of_one_are_the_same_under_any_noise(noise: NoiseConfig) -> None:
    made = steps(BlockSchedule([1, 4], 1))
    expected = made[0, 0].micro_batches[0].tensors()
    made.noise = noise
    found = made[0, 0].micro_batches[0].tensors()
    assert all(np.array_equal(found[name].numpy(), value.numpy()) for name, value in expected.items())
