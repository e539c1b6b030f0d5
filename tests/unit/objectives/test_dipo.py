"""DiPO of single tokens, worked by hand: what each term does and what it does to the gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dirl.losses.policy import LOG_BOUND, k3
from dirl.objectives import DiPO, RowLoss, ScoredRow

CONFIG = DiPO(clip_low=0.2, clip_high=0.3)


def loss_of(
    config: DiPO,
    logprobs: Tensor,
    old: Tensor,
    behaviour: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    weights: Tensor | None = None,
) -> RowLoss:
    columns = {"old_logprobs": old, "behaviour_logprobs": behaviour, "advantages": advantages}
    if reference is not None:
        columns["reference_logprobs"] = reference
    weights = torch.ones_like(old) if weights is None else weights
    return config.loss(ScoredRow(logprobs, torch.zeros_like(old), weights, torch.zeros_like(old).long(), columns))


def one_token(
    ratio: float,
    advantage: float,
    config: DiPO = CONFIG,
    mismatch: float = 1.0,
    reference: float | None = None,
) -> tuple[float, float, dict[str, Tensor]]:
    """(loss, d loss / d logp, sums) of one token of log-probability -1; `mismatch` is exp(old - behaviour)."""
    logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old = logp.detach() - math.log(ratio)
    ones = torch.ones_like(old)
    reference_logprobs = None if reference is None else reference * ones
    found = loss_of(config, logp, old, old - math.log(mismatch), reference_logprobs, advantage * ones)
    found.loss.backward()
    return found.loss.item(), logp.grad.item(), found.sums


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 2.0, -2.4, -2.4),  # inside the bounds: d(r A) / d logp = r A
        (1.5, 2.0, -2.6, 0.0),  # above, good: clipped to 1.3
        (1.5, -2.0, 3.0, 3.0),  # above, bad: the minimum is the unclipped one, it must come down
        (0.5, 2.0, -1.0, -1.0),  # below, good: it must come up again
        (0.5, -2.0, 1.6, 0.0),  # below, bad: clipped to 0.8
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_ratio_is_clipped_where_that_makes_the_objective_smaller(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    found, slope, sums = one_token(ratio, advantage)
    assert found == pytest.approx(loss)
    assert slope == pytest.approx(gradient)
    assert sums["ratio"].item() == pytest.approx(ratio)
    assert sums["clip_fraction"].item() == (1.0 if advantage and not gradient else 0.0)


def test_the_importance_weight_is_capped_and_has_no_gradient_of_its_own() -> None:
    config = DiPO(importance_cap=2.0)
    assert one_token(1.1, 1.0, config, mismatch=1.5)[:2] == pytest.approx((-1.65, -1.65))
    assert one_token(1.1, 1.0, config, mismatch=3.0)[:2] == pytest.approx((-2.2, -2.2))
    assert one_token(1.1, 1.0, mismatch=3.0)[:2] == pytest.approx((-1.1, -1.1))


def test_the_mismatch_is_logged_whether_it_weighs_or_not() -> None:
    for config in (CONFIG, DiPO(importance_cap=2.0)):
        sums = one_token(1.0, 1.0, config, mismatch=0.5)[2]
        assert sums["mismatch_kl"].item() == pytest.approx(math.log(2))
        assert sums["mismatch_abs"].item() == pytest.approx(math.log(2))


def test_k3_is_never_negative_and_its_slope_pulls_towards_the_reference() -> None:
    """Reference log-prob -2 against -1: exp(-1) + 1 - 1, slope 1 - exp(-1)."""
    config = DiPO(kl_coef=0.5)
    loss, gradient, sums = one_token(1.0, 0.0, config, reference=-2.0)
    assert loss == pytest.approx(0.5 * math.exp(-1))
    assert gradient == pytest.approx(0.5 * (1 - math.exp(-1)))
    assert sums["reference_kl"].item() == pytest.approx(math.exp(-1))
    assert one_token(1.0, 0.0, config, reference=-0.5)[1] == pytest.approx(0.5 * (1 - math.exp(0.5)))
    assert (k3(torch.linspace(-5, 0, 50), torch.full((50,), -1.0)) >= 0).all()


def test_a_reference_is_needed_for_a_kl_term_alone() -> None:
    assert DiPO(kl_coef=0.1).needs_reference and not DiPO().needs_reference
    assert "reference_kl" not in one_token(1.0, 0.0)[2]


def test_the_expectation_of_k3_is_the_kl_divergence() -> None:
    """Over all tokens of a distribution: sum p (r - log r - 1) with r = q / p is sum p log(p / q)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


@pytest.mark.parametrize("log_ratio", [9.0, 11.0, 200.0])
def test_a_ratio_over_the_bound_counts_as_e_to_the_10_and_has_no_gradient(log_ratio: float) -> None:
    """With a negative advantage no clip bounds the ratio: min(r A, clip(r) A) is r A."""
    loss, gradient, sums = one_token(math.exp(log_ratio), -2.0)
    assert loss == pytest.approx(2 * math.exp(min(log_ratio, 10)))
    assert gradient == pytest.approx(2 * math.exp(9) if log_ratio < 10 else 0.0)
    assert sums["bounded"].item() == (log_ratio > 10)


@pytest.mark.parametrize(
    ("ahead", "kl", "slope"), [(9.0, math.exp(9) - 10, 1 - math.exp(9)), (200.0, math.exp(10) - 11, 0.0)]
)
def test_the_kl_of_a_token_far_below_the_reference_is_bounded_and_has_no_gradient(
    ahead: float, kl: float, slope: float
) -> None:
    loss, gradient, sums = one_token(1.0, 0.0, DiPO(kl_coef=1.0), reference=-1.0 + ahead)
    assert (loss, gradient) == pytest.approx((kl, slope))
    assert sums["bounded"].item() == (ahead > 10)


def test_the_kl_of_a_token_far_above_the_reference_goes_on_to_pull() -> None:
    """d = -200: exp(d) - d - 1 = 199, slope 1."""
    loss, gradient, sums = one_token(1.0, 0.0, DiPO(kl_coef=1.0), reference=-201.0)
    assert (loss, gradient, sums["bounded"].item()) == pytest.approx((199.0, 1.0, 0.0))


def test_an_engine_that_was_far_from_the_trainer_weighs_the_cap() -> None:
    config = DiPO(importance_cap=2.0)
    logp = torch.tensor([-1.0], requires_grad=True)
    ones = torch.ones(1)
    found = loss_of(config, logp, logp.detach(), logp.detach() - 1e4, None, ones)  # exp(1e4) overflows
    found.loss.backward()
    assert (found.loss.item(), logp.grad.item()) == pytest.approx((-2.0, -2.0))


LOGPROBS = st.floats(-1e4, 0, width=32)


@pytest.mark.property
@given(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.floats(-10, 10, width=32), st.none() | st.floats(0.5, 10))
def test_no_log_probs_make_loss_or_gradient_infinite(
    logp: float, old: float, behaviour: float, reference: float, advantage: float, cap: float | None
) -> None:
    config = DiPO(kl_coef=0.1, importance_cap=cap)
    current = torch.tensor([logp], requires_grad=True)
    others = (torch.tensor([value]) for value in (old, behaviour, reference, advantage))
    found = loss_of(config, current, *others)
    found.loss.backward()
    assert found.loss.isfinite() and current.grad.isfinite()
    assert all(value.isfinite() for value in found.sums.values())
    # |gradient| of the two terms at their bounds, with the largest importance weight
    most = math.exp(LOG_BOUND) * (abs(advantage) * (1 if cap is None else cap) + 0.1) + 1
    assert abs(current.grad.item()) <= most * (1 + 1e-5)


def test_weights_scale_each_token() -> None:
    logp = torch.tensor([-1.0, -2.0, -3.0])
    advantages, weights = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, 0.5, 0.25])
    found = loss_of(CONFIG, logp, logp, logp, None, advantages, weights)
    assert found.loss.item() == pytest.approx(-(1.0 + 1.0 - 0.25))


def test_no_tokens_have_loss_zero() -> None:
    none = torch.zeros(0, requires_grad=True)
    found = loss_of(CONFIG, none, *[none.detach()] * 5)
    assert found.loss.item() == 0
    assert all(value.item() == 0 for value in found.sums.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_low", -0.1),
        ("clip_low", 1.5),
        ("clip_high", -0.1),
        ("kl_coef", -1.0),
        ("importance_cap", 0.0),
        ("normalization", "batch"),
        ("likelihood", "both"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"objective\.{name}={value!r}: use"):
        DiPO(**{name: value})
