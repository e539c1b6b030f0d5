"""Puzzles: right, wrong and devious solutions."""

import pytest
from tests.unit.rewards.samples import sample

from dirl.rewards import Countdown, Sudoku4

COUNTDOWN = '{"numbers": [3, 5, 7], "target": 22}'
SUDOKU = '{"puzzle": "1..4/..1./.1../4..1"}'


@pytest.mark.parametrize("expression", ["3*5+7", "7 + 5 * 3", "(3 * 5)\n+ 7", "((7)+(5*(3)))"])
def test_countdown_accepts_every_right_expression(expression):
    assert Countdown()(sample(rf"try 3+5+7, so \boxed{{{expression}}}", COUNTDOWN)) == 1.0


@pytest.mark.parametrize(
    "expression",
    [
        "3+5+7",
        "22",
        "3*5+7+0",
        "3*5+7*1",
        "3*5+7-3+3",
        "35-7",
        "3*5+7=22",
        "+3*5+7",
        "3*5--7",
        "3**5",
        "7//3*5",
        "3*5+",
        "",
        "(3*5)(7)",
        "3*5+07",
        "3*5+7.0",
        "3/(5-5)",
        "(3,5,7)",
        "x",
        "__import__('os')",
        "3if 5else 7",
        "(" * 99 + "3*5+7" + ")" * 99,
        "-" * 199 + "7",
        "9" * 199,
        " " * 500,
    ],
)
def test_countdown_refuses_everything_else(expression):
    assert Countdown()(sample(rf"\boxed{{{expression}}}", COUNTDOWN)) == 0.0


def test_countdown_uses_each_number_as_often_as_it_is_given():
    task = '{"numbers": [2, 2, 3], "target": 12}'
    assert Countdown()(sample(r"\boxed{2*2*3}", task)) == 1.0
    assert Countdown()(sample(r"\boxed{2*3*(3-1)}", task)) == 0.0
    assert Countdown()(sample(r"\boxed{(2+2)*3}", task)) == 1.0


def test_countdown_calculates_in_exact_fractions():
    task = '{"numbers": [3, 3, 8, 8], "target": 24}'
    assert 8 / (3 - 8 / 3) != 24  # what floats would say
    assert Countdown()(sample(r"\boxed{8/(3-8/3)}", task)) == 1.0


def test_countdown_needs_a_box_and_takes_the_last():
    assert Countdown()(sample("3*5+7", COUNTDOWN)) == 0.0
    assert Countdown()(sample(r"\boxed{3*5+7} \boxed{3+5+7}", COUNTDOWN)) == 0.0


@pytest.mark.parametrize(
    "truth", ["22", "{", '{"numbers": [], "target": 1}', '{"numbers": [1, "2"], "target": 1}', '{"numbers": [1]}']
)
def test_countdown_without_a_task_is_an_error(truth):
    with pytest.raises(ValueError, match="ground_truth="):
        Countdown()(sample(r"\boxed{1}", truth))


@pytest.mark.parametrize("grid", ["1234341221434321", "1234 3412\n2143 4321", " 1 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1 "])
def test_sudoku_accepts_a_valid_grid(grid):
    assert Sudoku4()(sample(rf"\boxed{{{grid}}}", SUDOKU)) == 1.0


@pytest.mark.parametrize(
    ("grid", "puzzle"),
    [
        ("1234341221434312", "................"),  # columns 3 and 4 repeat
        ("1234123412341234", "................"),  # columns repeat
        ("1111222233334444", "................"),  # rows repeat
        ("1234234134124123", "................"),  # a Latin square whose boxes repeat
        ("1234341221434321", "2..............."),  # valid, but not this puzzle
        ("123434122143432", "................"),
        ("12343412214343211", "................"),
        ("1234341221434325", "................"),
        ("1234/3412/2143/4321", "................"),
        ("", "................"),
    ],
)
def test_sudoku_refuses_repeats_other_givens_and_other_shapes(grid, puzzle):
    assert Sudoku4()(sample(rf"\boxed{{{grid}}}", f'{{"puzzle": "{puzzle}"}}')) == 0.0


def test_sudoku_needs_a_box():
    assert Sudoku4()(sample("1234341221434321", SUDOKU)) == 0.0


@pytest.mark.parametrize(
    "truth", ["1..4", "[]", '{"puzzle": "1..4"}', '{"puzzle": 5}', '{"puzzle": "1..4..1..1..4..5"}']
)
def test_sudoku_without_a_puzzle_is_an_error(truth):
    with pytest.raises(ValueError, match="ground_truth="):
        Sudoku4()(sample(r"\boxed{1}", truth))
