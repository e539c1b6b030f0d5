"""Every formula against numbers worked by hand."""

import math

import pytest
from tests.unit.rewards.samples import RIGHT, WRONG, sample

from dirl.rewards import (
    Accuracy,
    BinaryAccuracy,
    Boxed,
    Cosine,
    Countdown,
    ExactAnswer,
    Format,
    Length,
    Repetition,
    Reward,
    SoftOverlong,
    Speed,
    SpeedPenalty,
    Sudoku4,
    ThinkFormat,
)


def test_accuracy_is_one_for_a_right_answer_and_zero_for_a_wrong_missing_or_cut_one():
    reward = Accuracy()
    assert reward(sample(RIGHT)) == 1.0
    assert reward(sample(WRONG)) == 0.0
    assert reward(sample("the answer is 4")) == 0.0
    assert reward(sample(RIGHT, length=99)) == 1.0
    assert reward(sample(RIGHT, length=100)) == 0.0
    assert reward(sample(RIGHT, length=101)) == 0.0


def test_binary_accuracy_is_plus_or_minus_one_and_minus_one_if_cut():
    reward = BinaryAccuracy()
    assert reward(sample(RIGHT)) == 1.0
    assert reward(sample(WRONG)) == -1.0
    assert reward(sample("four")) == -1.0
    assert reward(sample(RIGHT, length=99)) == 1.0
    assert reward(sample(RIGHT, length=100)) == -1.0


@pytest.mark.parametrize(
    ("reward", "truth", "response"),
    [
        (Accuracy(), "4", RIGHT),
        (BinaryAccuracy(), "4", RIGHT),
        (Cosine(), "4", RIGHT),
        (Speed(), "4", RIGHT),
        (SpeedPenalty(), "4", RIGHT),
        (ExactAnswer(), "4", RIGHT),
        (Countdown(), '{"numbers": [2, 2], "target": 4}', r"\boxed{2+2}"),
        (Sudoku4(), '{"puzzle": "................"}', r"\boxed{1234341221434321}"),
    ],
    ids=lambda value: value.name if isinstance(value, Reward) else "",
)
def test_what_judges_is_above_zero_exactly_for_a_right_response(reward, truth, response):
    assert reward.judges
    assert reward(sample(response, truth, length=40)) > 0
    assert reward(sample(WRONG, truth, length=40)) <= 0
    assert reward(sample("", truth, length=40)) <= 0


@pytest.mark.parametrize("reward", [Accuracy(), BinaryAccuracy(), Cosine(), Speed(), SpeedPenalty()])
def test_a_right_response_that_was_cut_is_wrong_where_answers_are_compared(reward):
    assert reward(sample(RIGHT, length=99)) > 0
    for length in (100, 101):
        cut = reward(sample(RIGHT, length=length))
        assert cut == reward(sample(WRONG, length=length)) <= 0


def test_a_canonical_answer_that_ends_with_the_limit_is_right():
    # A stop token in the last place allowed: the demo's responses are as long as its limit.
    assert ExactAnswer()(sample(RIGHT, length=100)) == 1.0
    assert Countdown()(sample(r"\boxed{2+2}", '{"numbers": [2, 2], "target": 4}', length=100)) == 1.0


def test_the_form_and_the_length_of_a_response_judge_nothing():
    assert not any(kind.judges for kind in (Boxed, Format, ThinkFormat, Length, SoftOverlong, Repetition, Reward))


def test_exact_answer_compares_letters_and_not_values():
    reward = ExactAnswer()
    assert reward(sample(r"\boxed{ 12 }", "12")) == 1.0
    assert reward(sample(r"\boxed{12}", "$12$\n")) == 1.0
    assert reward(sample(r"\boxed{0.5}", "1/2")) == 0.0
    assert reward(sample(r"\boxed{12.0}", "12")) == 0.0
    assert reward(sample("12", "12")) == 0.0
    assert reward(sample(r"\boxed{18}", "9 + 9 = 18 eggs\n#### 18")) == 1.0
    assert reward(sample(r"\boxed{9}", "9 + 9 = 18 eggs\n#### 18")) == 0.0
    assert reward(sample(r"\boxed{1,080}", "#### 1,080")) == reward(sample(r"\boxed{1080}", "#### 1,080")) == 1.0
    assert reward(sample(r"\boxed{1,080}", "1080")) == 0.0
    assert reward(sample(r"\boxed{a, b}", r"\boxed{a}, \boxed{b}")) == 1.0
    assert reward(sample(r"\boxed{b,a}", r"\boxed{a}, \boxed{b}")) == 1.0
    assert reward(sample(r"\boxed{b} and \boxed{a}", r"\boxed{a}, \boxed{b}")) == 1.0
    assert reward(sample(r"\boxed{b}", r"\boxed{a}, \boxed{b}")) == 0.0
    assert reward(sample(r"\boxed{b,a}", "a,b")) == 0.0
    with pytest.raises(ValueError, match="ground_truth is empty"):
        reward(sample(r"\boxed{}", " "))


def test_boxed_is_a_tenth_for_a_complete_box():
    reward = Boxed()
    assert reward(sample(WRONG)) == 0.1
    assert reward(sample(r"\boxed{\frac{1}{2}}")) == 0.1
    assert reward(sample(r"\boxed{\frac{1}{2}")) == 0.0
    assert reward(sample("boxed{4}")) == 0.0


@pytest.mark.parametrize(
    ("response", "whole", "think"),
    [
        ("<think>a</think> b", 1, 1),
        ("\n<think>\na\nb\n</think>\n\nc\n", 1, 1),
        ("hm <think>a</think> b", 0, 1),
        ("<think>a</think>", 0, 1),
        ("<think>a</think> \n", 0, 1),
        ("<think> </think> b", 0, 0),
        ("<think></think> b", 0, 0),
        ("a</think> b", 0, 0),
        ("<think>a b", 0, 0),
        ("</think>a<think> b", 0, 0),
        ("<think>a</think> b <think>c</think>", 0, 0),
        ("<think><think>a</think> b", 0, 0),
        ("<think>a</think></think> b", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_wants_thinking_then_an_answer_and_think_format_one_pair_of_tags(response, whole, think):
    assert Format()(sample(response)) == whole
    assert ThinkFormat()(sample(response)) == think


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (0, 1.0, -0.5),
        (50, 0.75, -0.25),  # cos(pi / 2) = 0: half the way
        (25, 1.0 - 0.0732233, -0.5 + 0.0732233),  # (1 - cos 45 deg) / 4 = (1 - 0.7071068) / 4
        (99, 0.5001233, -0.0001233),  # (1 + cos 1.8 deg) / 4 = 0.4998766
        (100, -0.5, -0.5),
        (130, -0.5, -0.5),
    ],
)
def test_cosine_falls_for_right_answers_and_rises_for_wrong_ones(length, right, wrong):
    assert Cosine()(sample(RIGHT, length=length)) == pytest.approx(right, abs=1e-7)
    assert Cosine()(sample(WRONG, length=length)) == pytest.approx(wrong, abs=1e-7)


@pytest.mark.parametrize(
    ("cache", "length", "expected"),
    [
        (None, 49, 0.0),
        (None, 50, 0.0),
        (None, 51, -0.02),
        (None, 75, -0.5),
        (None, 100, -1.0),
        (20, 80, 0.0),
        (20, 81, -0.05),
        (20, 90, -0.5),
        (20, 100, -1.0),
        (100, 1, -0.01),
        (1, 99, 0.0),
        (1, 100, -1.0),
    ],
)
def test_soft_overlong_is_free_up_to_the_limit_less_the_cache(cache, length, expected):
    assert SoftOverlong(cache)(sample(length=length)) == pytest.approx(expected, abs=1e-12)


def test_soft_overlong_halves_an_odd_limit_exactly():
    assert SoftOverlong()(sample(length=5, limit=7)) == pytest.approx(-1.5 / 3.5)


def test_soft_overlong_refuses_a_cache_that_cannot_be():
    with pytest.raises(ValueError, match="cache=0"):
        SoftOverlong(0)
    with pytest.raises(ValueError, match=r"cache=101 .* max_response_tokens=100"):
        SoftOverlong(101)(sample())


def test_length_is_the_share_of_the_limit_and_nothing_if_cut():
    assert [Length()(sample(length=n)) for n in (1, 50, 99, 100, 101)] == [0.01, 0.5, 0.99, 0.0, 0.0]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("a b c d", 0.0),  # abc bcd
        ("a b a b a", -1 / 3),  # aba bab aba
        ("a A a\na a", -2 / 3),  # aaa three times
        ("a b c", 0.0),
        ("a b", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_counts_the_share_of_repeated_trigrams(response, expected):
    assert Repetition()(sample(response)) == pytest.approx(expected)


def test_repetition_takes_other_sizes():
    assert Repetition(ngram_size=1)(sample("a b a b")) == -0.5
    with pytest.raises(ValueError, match="ngram_size=0"):
        Repetition(0)


@pytest.mark.parametrize(
    ("length", "steps", "block_size", "share"),
    [
        (10, 10, 4, 0.0),  # one token a step
        (25, 10, 4, 0.5),  # s = 1.5 of 3: half the way
        (20, 10, 4, 0.25),  # s = 1 of 3: (1 - cos 60 deg) / 2
        (40, 10, 4, 1.0),  # B tokens a step
        (90, 10, 4, 1.0),  # clamped above
        (5, 10, 4, 0.0),  # clamped below: a cut last block counts its steps in full
        (20, 10, 2, 1.0),
        (10, 10, 1, 0.0),  # B = 1 has no speed
        (90, 10, 1, 0.0),
    ],
)
def test_speed_pays_fast_right_answers_and_charges_fast_wrong_ones(length, steps, block_size, share):
    shape = {"length": length, "steps": steps, "block_size": block_size}
    assert Speed()(sample(RIGHT, **shape)) == pytest.approx(0.5 + 0.5 * share)
    assert Speed()(sample(WRONG, **shape)) == pytest.approx(-0.5 * share)
    assert SpeedPenalty()(sample(RIGHT, **shape)) == 0.5
    assert SpeedPenalty()(sample(WRONG, **shape)) == pytest.approx(-0.5 * share)


def test_speed_refuses_a_response_without_denoising_steps():
    with pytest.raises(ValueError, match="denoising_steps=0"):
        Speed()(sample(steps=0))


def test_names_are_the_class_names_in_snake_case_unless_given():
    assert [r().name for r in (Accuracy, BinaryAccuracy, SoftOverlong, ThinkFormat)] == [
        "accuracy",
        "binary_accuracy",
        "soft_overlong",
        "think_format",
    ]
    assert Accuracy(weight=2, name="math").name == "math"
    with pytest.raises(ValueError, match="weight=nan of Boxed"):
        Boxed(weight=math.nan)


@pytest.mark.parametrize(
    ("response", "think", "whole"),
    [
        ("so\n</think>\n\n4", 1, 1),
        ("so</think>", 1, 0),
        ("<think>so</think>4", 0, 0),
        ("</think>4", 0, 0),
        ("4", 0, 0),
    ],
)
def test_a_tag_that_the_prompt_has_opened_is_not_asked_of_the_response(response: str, think: int, whole: int) -> None:
    assert ThinkFormat(opened=True)(sample(response)) == think
    assert Format(opened=True)(sample(response)) == whole
