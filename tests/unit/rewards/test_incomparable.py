"""Answers that cannot be compared, or not in time: wrong, counted, never an error; and what stays an error."""

import time
from pathlib import Path

import pytest
from tests.unit.rewards import misbehaving
from tests.unit.rewards.misbehaving import CountsCharacters, KilledFromOutside, Obedient
from tests.unit.rewards.samples import RIGHT, WRONG, sample

from dirl.rewards import Accuracy, BinaryAccuracy, Cosine, RewardError, Scorer, Speed

ENDLESS = rf"\boxed{{{'{' * 20}5{'}' * 20}}}"
"""Twenty nested braces: the parser looks at each in two ways, and so at a million."""


class Brief(Accuracy):
    cpu_limit_s = 0.7


def asked(*pairs: tuple[str, str]):
    return [sample(response, truth, index=i) for i, (response, truth) in enumerate(pairs)]


def test_a_truth_that_is_no_value_makes_other_answers_wrong_and_counted():
    pairs = [(rf"\boxed{{{box}}}", truth) for truth in ("12:00", "6:00", "1/0") for box in ("3", "x", truth)]
    with Scorer([Accuracy(), BinaryAccuracy()]) as scorer:
        results = [result for result in scorer.score(asked(*pairs)).results.values()]
    assert [r.components["accuracy"] for r in results] == [0.0, 0.0, 1.0] * 3
    assert [r.components["binary_accuracy"] for r in results] == [-1.0, -1.0, 1.0] * 3
    assert [r.incomparable for r in results] == [True, True, False] * 3
    assert all(type(value) is float for r in results for value in r.components.values())


def test_a_comparison_without_an_end_is_wrong_for_every_reward_that_compares_and_the_others_are_still_made():
    rewards = [CountsCharacters("b"), Brief(), Speed(), Obedient(), Cosine(name="last")]
    samples = [sample(ENDLESS, length=50), sample("7", index=1), sample(RIGHT, index=2)]
    with Scorer(rewards, workers=1, on_error="drop_group") as scorer:
        start = time.monotonic()
        report = scorer.score(samples[:2])
        assert time.monotonic() - start < 8.0  # one limit, not one for each reward that compares
    assert list(report.results) == [("p", 1)]  # Obedient cannot read the first, and that is an error as ever
    assert "obedient" in str(report.failed["p", 0])
    with Scorer([rewards[0], *rewards[1:3], rewards[4]], workers=1) as scorer:
        report = scorer.score(samples)
    first = report.results["p", 0]
    # L = 50 of M = 100, 10 steps, B = 4: s = min(5 - 1, 3) = 3, so h = 1; the cosine is at half its way
    assert first.components == pytest.approx({"counts_characters": 1.0, "brief": 0.0, "speed": -0.5, "last": -0.25})
    assert [result.incomparable for result in report.results.values()] == [True, False, False]
    assert report.results["p", 2].components["brief"] == 1.0


def test_hanging_answers_of_a_rollout_cost_one_limit_each_and_nothing_else():
    samples = [sample(ENDLESS if i % 10 == 0 else RIGHT, index=i) for i in range(40)]
    with Scorer([Brief()], workers=2) as scorer:
        scorer.score(samples[1:3])
        start = time.monotonic()
        report = scorer.score(samples)
        assert time.monotonic() - start < 30.0
    assert [r.total for r in report.results.values()] == [float(i % 10 != 0) for i in range(40)]
    assert sum(result.incomparable for result in report.results.values()) == 4


def test_the_time_limit_of_the_scorer_is_a_verdict_on_comparisons_too():
    with Scorer([Accuracy()], workers=1, timeout_s=1.0) as scorer:
        result = scorer.score([sample(ENDLESS)]).results["p", 0]
    assert (result.total, result.incomparable) == (0.0, True)


@pytest.mark.parametrize(("kills", "total", "incomparable"), [(0, 1.0, False), (1, 1.0, False), (2, -1.0, True)])
def test_an_answer_whose_worker_was_killed_is_tried_once_more_and_then_counted(tmp_path, kills, total, incomparable):
    samples = [sample("0", question=str(tmp_path / f"{i}"), index=i) for i in range(8)]
    samples[3] = sample(str(kills), question=str(tmp_path / "3"), index=3)
    with Scorer([KilledFromOutside(), CountsCharacters("0")], workers=1) as scorer:
        report = scorer.score(samples)
    result = report.results["p", 3]
    assert (result.components["killed_from_outside"], result.incomparable) == (total, incomparable)
    assert (tmp_path / "3").read_text() == "x" * min(kills + 1, 2)
    others = [r for key, r in report.results.items() if key != ("p", 3)]
    assert [(r.total, r.incomparable) for r in others] == [(2.0, False)] * 7


def test_a_reward_that_compares_nothing_stays_an_error_when_it_hangs_dies_or_raises():
    with Scorer([misbehaving.BusyForEver()], workers=1) as scorer, pytest.raises(RewardError, match="processor time"):
        scorer.score([sample(WRONG)])
    with Scorer([Obedient()], workers=1) as scorer, pytest.raises(RewardError, match=r"exit code 7\), twice"):
        scorer.score([sample("exit")])
    with Scorer([Obedient(), Accuracy()], workers=1) as scorer, pytest.raises(RewardError, match="ZeroDivisionError"):
        scorer.score([sample("raise")])


def test_an_empty_ground_truth_is_an_error_of_the_data_and_no_wrong_answer():
    with Scorer([Accuracy()], workers=1) as scorer, pytest.raises(RewardError, match="ground_truth is empty"):
        scorer.score([sample(RIGHT, " ")])


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux alone")
def test_a_worker_is_the_first_to_go_where_memory_ends():
    with Scorer([Accuracy()], workers=1) as scorer:
        scorer.score([sample(RIGHT)])
        (worker,) = scorer._pool._crew
        assert Path(f"/proc/{worker._process.pid}/oom_score_adj").read_text().strip() == "1000"
