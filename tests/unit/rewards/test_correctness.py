"""Which reward says what is correct."""

import pytest
from tests.unit.rewards.misbehaving import CountsCharacters, Obedient

from dirl.rewards import Accuracy, Boxed, Cosine, ExactAnswer, Format, Length, Scorer


def name_of(*rewards, correct=None):
    return Scorer(list(rewards), correct=correct).correctness.name


def test_the_first_that_judges_says_what_is_correct_and_no_form_before_it():
    assert name_of(Boxed(), Format(), Accuracy()) == "accuracy"
    assert name_of(Length(), ExactAnswer(), Accuracy()) == "exact_answer"
    assert name_of(Obedient(), Accuracy()) == "accuracy"


def test_a_reward_that_does_not_say_is_taken_only_where_no_other_judges():
    assert name_of(Boxed(), Obedient(), CountsCharacters("a")) == "obedient"


def test_the_named_one_comes_first_whatever_it_says_of_itself():
    assert name_of(Accuracy(), Boxed(), correct="boxed") == "boxed"
    assert name_of(Accuracy(), Accuracy(name="second"), correct="second") == "second"


def test_no_reward_that_judges_and_an_unknown_name_are_errors_with_a_remedy():
    with pytest.raises(ValueError, match=r"none of the rewards \(boxed, length\) says whether .*Accuracy"):
        name_of(Boxed(), Length())
    with pytest.raises(ValueError, match=r"correct='accuracy' is the name of no reward; name one of boxed, cosine"):
        name_of(Boxed(), Cosine(), correct="accuracy")


def test_correctness_of_a_judge_is_yes_or_no_and_of_another_its_degree():
    judge = Scorer([Cosine()]).correctness
    assert [judge.degree({"cosine": value}) for value in (1.0, 0.7, 0.0, -0.5)] == [1.0, 1.0, 0.0, 0.0]
    other = Scorer([Obedient()]).correctness
    assert [other.degree({"obedient": value}) for value in (1.0, 0.7, -0.5)] == [1.0, 0.7, -0.5]
    assert [other.is_right({"obedient": value}) for value in (1.0, 0.7, -0.5)] == [True, True, False]
