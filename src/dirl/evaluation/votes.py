"""Majority votes: whether the answer that most of k responses give is right."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import comb
from typing import NamedTuple


class Ballot(NamedTuple):
    """What the responses to one problem answer."""

    answers: tuple[tuple[int, bool], ...]
    """How many responses give each answer, and whether it is right."""
    none: int
    """Responses without an answer: they do not vote."""


def ballot(responses: Iterable[tuple[str | None, bool]], one_right: bool) -> Ballot:
    """Count answers, of pairs of a response's answer and whether it was judged right.

    An answer is right if a response that gives it was judged so.

    Args:
        one_right: answers that are right are one answer, however they are written.
    """
    pairs = list(responses)
    right = {answer for answer, is_right in pairs if is_right and answer is not None}
    counts = Counter(True if one_right and answer in right else answer for answer, _ in pairs if answer is not None)
    answers = tuple((count, answer is True or answer in right) for answer, count in counts.items())
    return Ballot(answers, len(pairs) - sum(counts.values()))


def maj_at_k(votes: Ballot, k: int) -> float:
    """The chance that k of the responses, drawn without putting back, elect a right answer.

    The answer with most votes is elected; of several, each with the same probability; where nobody votes, none.
    It is exact, over all subsets of k, so it is unbiased as `pass_at_k` is.
    """
    total = sum(count for count, _ in votes.answers) + votes.none
    most = max((count for count, _ in votes.answers), default=0)
    won = sum(_won_with(votes, k, level) for level in range(1, min(k, most) + 1))
    return won / comb(total, k)


def _won_with(votes: Ballot, k: int, level: int) -> float:
    """Subsets of k whose elected answer has `level` votes, each counted by its chance to be right."""
    states: dict[tuple[int, int, int], int] = {(0, 0, 0): 1}
    for count, is_right in votes.answers:
        states = _with_answer(states, count, is_right, k, level)
    won = 0.0
    for (taken, right, wrong), subsets in states.items():
        if right and k - taken <= votes.none:
            won += subsets * comb(votes.none, k - taken) * right / (right + wrong)
    return won


def _with_answer(
    states: dict[tuple[int, int, int], int], count: int, is_right: bool, k: int, level: int
) -> dict[tuple[int, int, int], int]:
    """Subsets by (votes cast, right answers at the level, wrong ones at the level), with one more answer."""
    found: dict[tuple[int, int, int], int] = defaultdict(int)
    for (taken, right, wrong), subsets in states.items():
        for cast in range(min(count, level, k - taken) + 1):
            at_level = cast == level
            state = (taken + cast, right + (at_level and is_right), wrong + (at_level and not is_right))
            found[state] += subsets * comb(count, cast)
    return found


def voted_ks(ks: Sequence[int]) -> list[int]:
    """Those k that a vote says something of: two voters agree, or either is elected."""
    return [k for k in ks if k > 2]
