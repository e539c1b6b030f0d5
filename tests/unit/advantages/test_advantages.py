"""Group-relative advantages: worked by hand, and against the oracle."""

import random

import pytest
from tests import reference

from dirl.advantages import LeaveOneOut, Mean, ZScore, has_spread

RULES = {"zscore": ZScore().of_rewards, "mean": Mean().of_rewards, "leave_one_out": LeaveOneOut().of_rewards}


def test_zscores_by_hand() -> None:
    """Mean 0.25, population standard deviation sqrt(3) / 4."""
    assert RULES["zscore"]([1, 0, 0, 0]) == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)])
    assert RULES["zscore"]([2, 4]) == pytest.approx([-1, 1])  # the sample deviation would give 0.707


def test_mean_only_keeps_the_scale_of_the_rewards() -> None:
    assert RULES["mean"]([1, 0, 0, 0]) == [0.75, -0.25, -0.25, -0.25]


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    assert RULES["leave_one_out"]([4, 1, 0]) == pytest.approx([3.5, -1, -2.5])


@pytest.mark.parametrize("mode", list(RULES))
@pytest.mark.parametrize("rewards", [[1.0], [0.0, 0.0], [0.1] * 3, [1 / 3] * 7, [-1e6] * 5, [1e-12] * 4])
def test_a_group_without_spread_has_advantage_zero(rewards: list[float], mode: str) -> None:
    """The std of equal floats need not be 0: that of three times 0.1 is 1.4e-17, and z-scores would be noise."""
    assert RULES[mode](rewards) == [0.0] * len(rewards)
    assert not has_spread(rewards)


def test_rewards_that_differ_by_rounding_alone_have_no_spread() -> None:
    equals = [0.1 + 0.2, 0.3]
    assert equals[0] != equals[1]
    assert not has_spread(equals) and RULES["zscore"](equals) == [0.0, 0.0]


def test_small_differences_that_are_meant_have_spread() -> None:
    assert has_spread([1.0, 1.0001]) and has_spread([0.0, 1e-6]) and has_spread([1000.0, 1000.001])


@pytest.mark.parametrize("mode", list(RULES))
def test_random_groups_are_those_of_the_oracle(mode: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        rewards = [rng.choice([0.0, 1.0, rng.uniform(-2, 3)]) for _ in range(rng.randint(1, 16))]
        assert RULES[mode](rewards) == pytest.approx(reference.group_advantages(rewards, mode), abs=1e-12)
