"""The head's scores of single rows: entropy, confidence, and what happens when the policy has moved out of a cut."""

from math import log

import pytest
import torch

from dirl.models.head import LOG_FLOOR, selection_factors, target_scores
from dirl.types import DecodingParams

MASK = 4
BANNED = ((MASK, MASK + 1),)
PROBS = torch.tensor([0.5, 0.25, 0.125, 0.125, 9.0])
"""Of four tokens, and a mask token that must not count."""


WEIGHT = PROBS.log()[:, None]
"""A head that answers [n, 1] with the logarithms of `PROBS` n times, each scaled by its row."""


def score(target: int, **settings: float | str) -> tuple[float, float, float]:
    rows = torch.ones(1, 1)
    found = target_scores(WEIGHT, rows, torch.tensor([target]), BANNED, DecodingParams(**settings), 10)
    logprob, entropy, confidence = (x.item() for x in found)
    return logprob, entropy, confidence


def test_a_token_is_scored_without_the_mask_token() -> None:
    assert score(1) == pytest.approx((log(0.25), 1.75 * log(2), 0.25), rel=1e-6)


def test_a_cut_changes_logprob_and_entropy_and_leaves_the_confidence() -> None:
    """Of 1/2 and 1/4, 2/3 and 1/3 are left."""
    entropy = log(3) - 2 / 3 * log(2)
    assert score(1, top_k=2) == pytest.approx((log(1 / 3), entropy, 0.25), rel=1e-6)


def test_confidence_max_is_that_of_the_best_token_whatever_was_drawn() -> None:
    assert score(3, confidence="max")[2] == pytest.approx(0.5)
    assert score(1, confidence="max", top_k=2)[2] == pytest.approx(0.5)  # and before the cut


def test_temperature_divides_the_logits() -> None:
    """At 1/2 the probabilities are squared: 16, 4, 1, 1 of 22."""
    assert score(1, temperature=0.5)[0] == pytest.approx(log(4 / 22), rel=1e-6)


def test_a_target_that_has_left_the_cut_stays_scorable() -> None:
    """It was inside when it was drawn; now it is counted with the two that are: 1/8 of 7/8."""
    assert score(3, top_k=2)[0] == pytest.approx(log(1 / 7), rel=1e-6)


def test_entropy_and_confidence_carry_no_gradient() -> None:
    rows = torch.ones(3, 1, requires_grad=True)
    found = target_scores(WEIGHT, rows, torch.tensor([0, 1, 2]), BANNED, DecodingParams(top_k=3), 2)
    assert [x.requires_grad for x in found] == [True, False, False]


def test_entropy_can_be_left_out() -> None:
    found = target_scores(
        WEIGHT, torch.ones(2, 1), torch.tensor([0, 1]), BANNED, DecodingParams(), 10, with_entropy=False
    )
    assert found[1].tolist() == [0, 0]


def factor(bound: float, inclusive: bool, **settings: float) -> float:
    values = torch.tensor([bound]), torch.tensor([inclusive])
    return selection_factors(WEIGHT, torch.ones(1, 1), *values, BANNED, DecodingParams(**settings), 10).item()


def test_a_factor_is_the_probability_of_the_candidates_below_the_bound() -> None:
    assert factor(0.3, True) == pytest.approx(log(0.5), rel=1e-6)
    assert factor(0.2, True) == pytest.approx(log(0.25), rel=1e-6)
    assert factor(0.6, False) == pytest.approx(0, abs=1e-6)


def test_a_candidate_at_the_bound_counts_where_the_bound_is_inclusive() -> None:
    edge = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().softmax(-1)[1].item()
    assert factor(edge, True) == pytest.approx(log(0.5), rel=1e-6)
    assert factor(edge, False) == pytest.approx(log(0.25), rel=1e-6)


def test_the_sum_runs_over_the_cut_and_the_comparison_over_what_was_before_it() -> None:
    """Kept are 1/2, 1/4, 1/8: below 0.3 lie 3/8 of 7/8; the second's 2/7 after the cut would be below 0.28 no more."""
    assert factor(0.28, True, top_k=3) == pytest.approx(log(3 / 7), rel=1e-6)


def test_an_impossible_rejection_is_the_floor_and_pulls_nowhere() -> None:
    rows = torch.ones(2, 1, requires_grad=True)
    bound, inclusive = torch.tensor([0.01, 0.3]), torch.tensor([False, False])
    found = selection_factors(WEIGHT, rows, bound, inclusive, BANNED, DecodingParams(), 10)
    assert found[0].item() == LOG_FLOOR
    (gradient,) = torch.autograd.grad(found.sum(), rows)
    assert gradient[0].item() == 0 and gradient[1].item() != 0 and gradient.isfinite().all()


def test_logits_of_double_precision_are_scored_in_it() -> None:
    rows = torch.ones(1, 1, dtype=torch.float64)
    logprob, _, _ = target_scores(PROBS.double().log()[:, None], rows, torch.tensor([0]), BANNED, DecodingParams(), 1)
    assert logprob.item() == pytest.approx(log(0.5), abs=1e-15)
