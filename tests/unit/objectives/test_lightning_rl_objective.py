"""LightningRL: loss and gradient against its equation on naive forwards, and what the second term learns."""

import dataclasses
from functools import cache

import pytest
import torch
from tests.policies import CLOSE, DIVIDED, WHOLE, Policies, trace_states
from tests.reference import naive_dipo_loss
from torch import Tensor

from dirl.objectives import DiPO, LightningRL
from dirl.rl.staleness import check_stale
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
RIGHT = (True, False, True, False, True, False)
TIGHT = {"clip_low": 0.05, "clip_high": 0.08}


@cache
def policies() -> Policies:
    this, rights = Policies.sample(PARAMS), iter(RIGHT)
    groups = [[dataclasses.replace(t, correct=next(rights)) for t in group] for group in this.groups]
    return dataclasses.replace(this, groups=groups)


def naive_loss(objective: LightningRL, moved: bool) -> Tensor:
    """DiPO's equation, and -log p of each token of a right answer over what its term of the first sum is divided by."""
    this = policies()
    scored = [this.scored(t, trace_states(t, this.spec.block_size), moved) for t in this.trajectories]
    loss = naive_dipo_loss(
        scored,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        normalisation=objective.normalization,
        max_response_tokens=PARAMS.max_response_tokens,
        kl_coef=objective.kl_coef,
    )
    lengths = [len(s.logp) for s in scored]
    for each, is_right in zip(scored, RIGHT, strict=True):
        divisor = {
            "token": sum(lengths),
            "sequence": len(lengths) * len(each.logp),
            "constant": len(lengths) * PARAMS.max_response_tokens,
        }[objective.normalization]
        loss = loss - objective.nll_coef * is_right * each.logp.sum() / divisor
    return loss


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize(
    "options",
    [{}, {"nll_coef": 0.7, "kl_coef": 0.3, "normalization": "token", **TIGHT}, {"normalization": "constant"}],
    ids=["defaults", "token", "constant"],
)
def test_loss_and_gradient_are_those_of_the_equation(options: dict, moved: bool, budget: int) -> None:
    objective = LightningRL(**options)
    policies().assert_close(policies().by_module(objective, moved, budget), naive_loss(objective, moved))


def test_without_the_second_term_it_is_dipo() -> None:
    options = {"clip_high": 0.28, "kl_coef": 0.0, "normalization": "token"}
    found = policies().by_module(LightningRL(nll_coef=0.0, **options), moved=True)
    wanted = policies().by_module(DiPO(**options), moved=True)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert found[2].items() >= wanted[2].items()


def test_the_second_term_matters_to_the_gradient() -> None:
    plain, other = (policies().gradient(naive_loss(LightningRL(nll_coef=c), moved=True)) for c in (0.0, 0.1))
    assert float((other - plain).norm() / plain.norm()) > 100 * CLOSE


def test_answers_that_nothing_has_judged_are_refused() -> None:
    unjudged = [[dataclasses.replace(t, correct=None) for t in group] for group in policies().groups]
    with pytest.raises(ValueError, match="0#0: nothing says whether it is right"):
        step_batch(unjudged, policies().spec, LightningRL(), 9, WHOLE)


def test_samples_of_older_weights_need_a_cap() -> None:
    check_stale("here", LightningRL(importance_cap=2.0), PARAMS)
    with pytest.raises(ValueError, match=r"importance_cap, e\.g\. to 2"):
        check_stale("here", LightningRL(), PARAMS)


def test_a_negative_coefficient_is_refused_by_name_and_value() -> None:
    with pytest.raises(ValueError, match=r"objective\.nll_coef=-0\.1: use"):
        LightningRL(nll_coef=-0.1)
