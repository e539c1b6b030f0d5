"""Bootstrap intervals over problems, and paired tests, against slow or exact counterparts."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from dirl.evaluation import Problem, Response
from dirl.evaluation.intervals import intervals
from dirl.evaluation.paired import paired, sign_flip_p_value


def problem(prompt_id: str, *right: bool, question: str = "?") -> Problem:
    judged = [Response(i, "", "right" if r else "wrong", 3, 2, "stop", reward=float(r)) for i, r in enumerate(right)]
    return Problem(prompt_id, question, "1", tuple(judged))


def test_an_interval_is_that_of_resampled_ratios() -> None:
    rng = np.random.default_rng(1)
    numerators, denominators = rng.integers(1, 30, (40, 1)).astype(float), rng.integers(1, 9, (40, 1)).astype(float)
    ((low, high),) = intervals(numerators, denominators, 20_000, seed=0)
    drawn = rng.integers(0, 40, (20_000, 40))
    slow = numerators[drawn, 0].sum(1) / denominators[drawn, 0].sum(1)
    # two sets of 20,000 resamples: the quantiles' own error is about 2 % of the width
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.04 * (high - low))


def test_the_interval_of_a_share_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        right = (rng.random((100, 1)) < 0.3).astype(float)
        ((low, high),) = intervals(right, np.ones_like(right), 500, seed)
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99  # 0.95 less what a percentile interval lacks; 0.015 of error


def test_no_interval_of_one_problem_or_of_none() -> None:
    assert intervals(np.ones((1, 2)), np.ones((1, 2)), 100, 0) == [None, None]
    assert intervals(np.zeros((0, 1)), np.zeros((0, 1)), 100, 0) == [None]
    assert intervals(np.ones((5, 1)), np.ones((5, 1)), 0, 0) == [None]
    assert intervals(np.zeros((5, 1)), np.zeros((5, 1)), 100, 0) == [None], "no problem has a part in it"


def test_pieces_do_not_change_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((30, 1))
    (whole,) = intervals(values, np.ones_like(values), 200, 3)
    monkeypatch.setattr("dirl.evaluation.intervals.AT_ONCE", 100)
    (pieces,) = intervals(values, np.ones_like(values), 200, 3)
    assert pieces == pytest.approx(whole)


@pytest.mark.parametrize("seed", range(8))
def test_the_sign_flip_test_counts_all_ways_to_change_signs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = [Fraction(int(n), int(d)) for n, d in zip(rng.integers(-4, 5, 9), rng.integers(1, 5, 9), strict=True)]
    sums = [sum(s * g for s, g in zip(signs, gains, strict=True)) for signs in itertools.product((1, -1), repeat=9)]
    share = sum(abs(one) >= abs(sum(gains)) for one in sums) / len(sums)
    assert sign_flip_p_value(gains) == pytest.approx(share, abs=1e-12)


def test_with_one_response_a_problem_it_is_mcnemars_exact_test() -> None:
    better, worse = 9, 2
    gains = [Fraction(1)] * better + [Fraction(-1)] * worse + [Fraction(0)] * 50
    n = better + worse
    assert sign_flip_p_value(gains) == pytest.approx(2 * sum(comb(n, i) for i in range(worse + 1)) / 2**n)
    assert sign_flip_p_value([Fraction(0)] * 3) == sign_flip_p_value([]) == 1.0


def test_a_paired_comparison_by_hand() -> None:
    first = [problem("a", True, False), problem("b", False), problem("c", True)]
    second = [problem("c", True), problem("b", True), problem("a", True, True)]
    found = paired(first, second)
    assert found.difference == pytest.approx((0.5 + 1 + 0) / 3)
    assert (found.better, found.worse, found.problems) == (2, 0, 3)
    assert found.p_value == 0.5  # both gains up, or both down, of four ways
    assert found.low <= found.difference <= found.high


def test_runs_on_other_problems_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"not of the same problems \(1 and 1, 2 differ, the first: prompt 'a'\)"):
        paired([problem("a", True)], [problem("b", True)])
    with pytest.raises(ValueError, match="not of the same problems"):
        paired([problem("a", True)], [problem("a", True, question="another")])
