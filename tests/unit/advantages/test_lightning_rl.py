"""LightningRL's advantage, worked by hand: rights and speeds are compared apart, and groups of one speed dropped."""

import math
from collections.abc import Sequence

import pytest

from dirl.advantages import LightningRL
from dirl.types import ModelSpec, Trajectory

SPEC = ModelSpec(4, 20, (19,), 18, 21)


def answer(number: int, right: bool, steps: Sequence[int], length: int | None = None) -> Trajectory:
    """Of blocks that took so many denoising steps each; the prompt is one whole block."""
    step_map = tuple(min(i + 1, n) for n in steps for i in range(4))
    return Trajectory(
        prompt_id="p",
        sample_index=number,
        prompt_ids=(1, 2, 3, 4),
        response_ids=(5,) * len(step_map),
        response_length=length or len(step_map),
        step_map=step_map,
        behaviour_logprobs=(-0.5,) * len(step_map),
        finish_reason="stop",
        policy_version=0,
        reward=7.0 * number,  # not looked at
        correct=right,
    )


def advantages(group: Sequence[Trajectory], **options: float) -> list[float]:
    rule = LightningRL(**options)
    rule.setup(SPEC)
    return rule(group)


def teaches(group: Sequence[Trajectory], **options: float) -> bool:
    rule = LightningRL(**options)
    rule.setup(SPEC)
    return rule.teaches(group, [float(t.correct) for t in group])


MIXED = [answer(0, True, [4, 4]), answer(1, True, [2, 2]), answer(2, False, [4, 4]), answer(3, False, [1, 1], length=7)]
"""Tokens per step 1, 2, 1 and 3.5."""


def test_rights_and_speeds_are_z_scored_apart_and_added() -> None:
    mean, deviation = 7.5 / 4, math.sqrt((2 * 0.875**2 + 0.125**2 + 1.625**2) / 4)
    speeds = [(x - mean) / deviation for x in (1, 2, 1, 3.5)]
    rights = [1, 1, -1, -1]
    assert advantages(MIXED) == pytest.approx([a + b for a, b in zip(rights, speeds, strict=True)])
    assert advantages(MIXED, speed_weight=0.5) == pytest.approx(
        [a + b / 2 for a, b in zip(rights, speeds, strict=True)]
    )
    assert advantages(MIXED, speed_weight=0.0) == pytest.approx(rights)


def test_a_group_of_one_kind_has_what_the_other_kind_says() -> None:
    right = [answer(0, True, [4, 4]), answer(1, True, [2, 2])]
    assert advantages(right) == pytest.approx([-1, 1])
    equally_fast = [answer(0, True, [4, 4]), answer(1, False, [4, 4])]
    assert advantages(equally_fast) == pytest.approx([1, -1])
    assert advantages([answer(0, True, [4]), answer(1, True, [4])]) == [0.0, 0.0]


def test_speeds_that_hardly_differ_are_one() -> None:
    """8 tokens in 8 steps, and 7 in 7 with one less counted: 1 against 0.875 tokens per step."""
    group = [answer(0, True, [4, 4]), answer(1, False, [4, 4], length=7)]
    assert advantages(group) == pytest.approx([1 + 1, -1 - 1])
    assert advantages(group, min_speed_spread=0.2) == pytest.approx([1, -1])
    assert teaches(group) and not teaches(group, min_speed_spread=0.2)


def test_groups_all_wrong_or_of_one_speed_teach_nothing_and_those_all_right_do() -> None:
    assert teaches(MIXED)
    assert teaches([answer(0, True, [4, 4]), answer(1, True, [2, 2])])
    assert not teaches([answer(0, False, [4, 4]), answer(1, False, [2, 2])])
    assert not teaches([answer(0, True, [4, 4]), answer(1, False, [4, 4])])


@pytest.mark.parametrize("name", ["speed_weight", "min_speed_spread"])
def test_options_out_of_range_are_refused_by_name_and_value(name: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.advantage\.{name}=-1.0: use"):
        LightningRL(**{name: -1.0})
