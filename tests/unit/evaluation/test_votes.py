"""Majority votes against a count over all subsets."""

import random
from itertools import combinations

import pytest

from dirl.evaluation.votes import ballot, maj_at_k
from dirl.rewards import Accuracy, Countdown, ExactAnswer


def by_counting(answers: list[tuple[str | None, bool]], k: int) -> float:
    """The mean over all subsets of k of the chance that the answer with most votes, one of several, is right."""
    won = []
    for subset in combinations(answers, k):
        votes = [answer for answer, _ in subset if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        elected = {answer for answer in votes if votes.count(answer) == most}
        right = {answer for answer, is_right in answers if is_right}
        won.append(len(elected & right) / len(elected) if elected else 0.0)
    return sum(won) / len(won)


@pytest.mark.parametrize("seed", range(30))
def test_maj_at_k_is_the_mean_over_all_subsets(seed: int) -> None:
    rng = random.Random(seed)
    right = set(rng.sample("abcd", rng.randint(0, 2)))
    drawn = [rng.choice([*"aabbcd", None]) for _ in range(rng.randint(3, 8))]
    answers = [(answer, answer in right) for answer in drawn]
    votes = ballot(answers, one_right=False)
    for k in range(1, len(answers) + 1):
        assert maj_at_k(votes, k) == pytest.approx(by_counting(answers, k), abs=1e-12)


def test_right_answers_are_one_answer_where_they_are_values() -> None:
    answers = [("1/2", True), ("0.5", True), ("3", False), ("3", False), (None, False)]
    assert maj_at_k(ballot(answers, one_right=True), 5) == 0.5, "two votes each"
    assert maj_at_k(ballot(answers, one_right=False), 5) == 0.0


def test_a_response_that_lost_its_reward_votes_for_its_answer() -> None:
    assert maj_at_k(ballot([("7", True), ("7", False), ("8", False)], one_right=True), 3) == 1.0


def test_nobody_votes_nobody_wins() -> None:
    assert maj_at_k(ballot([(None, False)] * 3, one_right=True), 3) == 0.0


def test_rewards_know_the_answers_that_they_compare() -> None:
    assert ExactAnswer().answer(r"so \boxed{ 12 }") == "12"
    assert Accuracy().answer(r"\boxed{1}, \boxed{2}") == "1,2"
    assert Countdown().answer(r"\boxed{(3 + 5) * 7}") == "(3+5)*7"
    assert Accuracy().answer("no box") is None
