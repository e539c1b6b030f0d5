"""Which block size a step has, and what no schedule can be."""

from typing import Any

import pytest

from dirl.diffusion.block_schedule import BlockSchedule


def test_each_size_has_its_steps_and_the_last_stays() -> None:
    schedule = BlockSchedule([1, 2, 4], [3, 2])
    assert [schedule.size_at(step) for step in range(8)] == [1, 1, 1, 2, 2, 4, 4, 4]
    assert schedule.before_last == 5 and schedule.size_at(10**6) == 4


def test_one_number_is_that_of_each_size_but_the_last() -> None:
    schedule = BlockSchedule([1, 2, 4], 2)
    assert [schedule.size_at(step) for step in range(6)] == [1, 1, 2, 2, 4, 4]


def test_sizes_may_come_down_again() -> None:
    assert [BlockSchedule([1, 32, 4], [1, 1]).size_at(step) for step in range(3)] == [1, 32, 4]


@pytest.mark.parametrize(
    ("sizes", "steps", "message"),
    [
        ([4], 10, r"block_schedule.sizes=\[4\]: name two block sizes or more"),
        ([1, 0], 10, r"sizes=\[1, 0\]: .* each at least 1"),
        ([1, 1, 4], 10, "a size follows itself"),
        ([1, 2, 4], [10], r"block_schedule.steps=\[10\]: give one number, or one for each of the first 2 sizes"),
        ([1, 2, 4], [10, 0], "each at least 1; the last size stays to the end"),
        ([1, 2, 4], 0, "block_schedule.steps=0"),
    ],
)
def test_what_is_no_schedule_is_refused(sizes: list[int], steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockSchedule(sizes, steps)


def test_it_has_to_end_with_the_models_block_size_within_the_run() -> None:
    schedule = BlockSchedule([1, 2, 4], 5)
    schedule.check(4, 11)
    schedule.check(4, None)
    with pytest.raises(
        ValueError, match=r"sizes=\[1, 2, 4\] ends with 4, the model has block_size=8, with which it is"
    ):
        schedule.check(8, 11)
    with pytest.raises(ValueError, match="block size, 4, begins after 10 optimizer steps, and the run has 10"):
        schedule.check(4, 10)
