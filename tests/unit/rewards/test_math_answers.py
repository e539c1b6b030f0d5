"""Finding the last box and comparing answers."""

import time

import pytest
from tests.unit.rewards.samples import sample

from dirl.rewards.comparison import compare
from dirl.rewards.math_answers import bare_answer, bare_truth, judge, last_boxed, last_list
from dirl.rewards.verdict import Verdict


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


def test_a_flood_of_blanks_and_boxes_is_read_at_once():
    start = time.perf_counter()
    assert last_list(r"\boxed{1}" + " " * 100_000 + r"\boxed{2}") == ["2"]
    assert len(last_list(r"\boxed{1}, \boxed{2}, " * 5_000 + r"\boxed{3}")) == 3
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize(
    "wrapped", ["4", " 4\n", "$4$", "$$ 4 $$", r"\(4\)", r"\[4\]", r"so \boxed{4}.", r"\boxed{$4$}"]
)
def test_ground_truths_come_bare_boxed_or_in_math_delimiters(wrapped):
    assert bare_answer(wrapped) == "4"
    assert is_right(sample(r"\boxed{4}", wrapped))
    assert not is_right(sample(r"\boxed{5}", wrapped))


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
    assert compare(truth, answer) is Verdict.RIGHT


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
    assert compare(truth, answer) is not Verdict.RIGHT


def test_equal_strings_need_no_mathematics():
    assert compare("x^", "x^") is Verdict.RIGHT  # parses to nothing


def test_the_last_box_counts_and_not_an_earlier_right_one():
    assert not is_right(sample(r"\boxed{4} or rather \boxed{5}", "4"))
    assert is_right(sample(r"\boxed{5} or rather \boxed{4}", "4"))


def test_an_empty_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="ground_truth is empty"):
        judge(sample(r"\boxed{}", "  "))


@pytest.mark.parametrize(
    ("truth", "bare"),
    [
        ("9 + 9 = 18\n#### 18", "18"),
        ("#### 1,080", "1080"),
        ("#### 1, 2", "1, 2"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"so \boxed{$x$}, \boxed{2}.", "x, 2"),
        (r"\boxed{4} so \boxed{4}", "4"),
        ("$4$.", "4"),
    ],
)
def test_a_ground_truth_is_all_of_its_boxes_or_what_follows_gsm8ks_mark(truth, bare):
    assert bare_truth(truth) == bare


@pytest.mark.parametrize(
    ("response", "listed"),
    [
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"Thus $\boxed{1}$, $\boxed{2}$, and $\boxed{3}$.", ["1", "2", "3"]),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", ["1", "2"]),
        (r"\boxed{1} \text{ and } \boxed{2}", ["1", "2"]),
        (r"\boxed{1}; \boxed{1}", ["1"]),
        (r"first \boxed{9}. So \boxed{1}, \boxed{2}", ["1", "2"]),
        (r"\boxed{4} or rather \boxed{5}", ["5"]),
        ("\\boxed{4}\n\\boxed{5}", ["5"]),
        ("none", []),
    ],
)
def test_boxes_that_a_response_lists_last_are_one_answer(response, listed):
    assert last_list(response) == listed


def test_a_truth_of_several_boxes_wants_all_of_them_in_one_box_or_in_as_many():
    truth = r"\boxed{1}, \boxed{2}"
    assert is_right(sample(r"\boxed{2, 1}", truth))
    assert is_right(sample(r"\boxed{2} and \boxed{1}", truth))
    assert not is_right(sample(r"\boxed{2}", truth))
    assert not is_right(sample(r"\boxed{1} no, \boxed{2}", truth))
    assert not is_right(sample(r"\boxed{1}, \boxed{2}, \boxed{3}", truth))
    assert is_right(sample(r"\boxed{1} and \boxed{2}", "1, 2"))


def is_right(made):
    return judge(made) is Verdict.RIGHT
