"""Finding the last box and comparing answers."""

import time

import pytest
from tests.unit.rewards.samples import sample

from dirl.rewards.math_answers import bare_answer, equal_answers, is_correct, last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{3} no, \boxed{ 4 }.", "4"),
        (r"\boxed{\frac{1}{2}} and {5}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{a \\}", r"a \\"),
        (r"} stray \boxed{3}", "3"),
        (r"{ open \boxed{3}", "3"),
        (r"\boxed{3} then \boxed{4", "3"),
        (r"\boxed{3 then {4}", None),
        (r"\\boxed{3}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed 3", None),
        ("boxed{3}", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


def test_a_flood_of_open_boxes_is_read_in_linear_time():
    start = time.perf_counter()
    assert last_boxed(r"\boxed{" * 100_000 + "3}") == "3"
    assert time.perf_counter() - start < 5.0  # a second search from every box would take minutes


@pytest.mark.parametrize(
    "wrapped", ["4", " 4\n", "$4$", "$$ 4 $$", r"\(4\)", r"\[4\]", r"so \boxed{4}.", r"\boxed{$4$}"]
)
def test_ground_truths_come_bare_boxed_or_in_math_delimiters(wrapped):
    assert bare_answer(wrapped) == "4"
    assert is_correct(sample(r"\boxed{4}", wrapped))
    assert not is_correct(sample(r"\boxed{5}", wrapped))


@pytest.mark.parametrize("text", ["$", "$$", "$5", "$3$ or $4$"])
def test_what_is_not_one_delimited_answer_stays_as_it_is(text):
    assert bare_answer(text) == text


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (r"\frac{1}{2}", "0.5"),
        ("0.5", "1/2"),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
        ("2x + 1", "1 + 2x"),
        ("5", "x = 5"),
        ("1,000", "1000"),
        ("-1/2", r"-\dfrac12"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("(1, 2)", "(1,2)"),
        (r"\text{(B)}", "B"),
    ],
)
def test_equal_mathematics_in_other_letters_is_correct(truth, answer):
    assert equal_answers(truth, answer)


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("4", "5"),
        ("1/2", "0.51"),
        ("(1, 2)", "(2, 1)"),
        ("4", ""),
        ("4", "x^"),
        ("4", "??"),
        ("A", "B"),
        ("4", r"\infty"),
        ("4", r"\frac{1}{0}"),
        ("[0, 1]", "x > 2"),
        ("1", "-1"),
        ("x^", "y^"),
    ],
)
def test_other_or_unreadable_answers_are_wrong_and_no_error(truth, answer):
    assert not equal_answers(truth, answer)


def test_equal_strings_need_no_mathematics():
    assert equal_answers("x^", "x^")  # parses to nothing


def test_the_last_box_counts_and_not_an_earlier_right_one():
    assert not is_correct(sample(r"\boxed{4} or rather \boxed{5}", "4"))
    assert is_correct(sample(r"\boxed{5} or rather \boxed{4}", "4"))


def test_an_empty_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="ground_truth is empty"):
        is_correct(sample(r"\boxed{}", "  "))


def test_what_math_verify_raises_is_raised():
    with pytest.raises(ValueError, match="zoo"):
        equal_answers(r"\frac{1}{0}", "3")
