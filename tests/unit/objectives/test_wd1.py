"""wd1: loss and gradient against its equation on naive forwards, for each estimate of the likelihood."""

import dataclasses
import itertools
from functools import cache

import pytest
import torch
from tests.bound_states import bound_of, draws_of
from tests.policies import CLOSE, DIVIDED, WHOLE, Policies, trace_states
from tests.reference import naive_wd1_loss
from torch import Tensor

from dirl.objectives import WD1
from dirl.rl.staleness import check_stale
from dirl.rl.steps import Shown, step_batch, take_views
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
CASES = {
    "elbo": {},
    "independent sets": {"views_per_block": 3, "complementary": False},
    "trace": {"estimate": "trace"},
    "one step": {"estimate": "one_step"},
}


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def naive_logp(objective: WD1, shown: Shown) -> Tensor:
    this, t = policies(), shown.trajectory
    if objective.estimate == "elbo":
        paired = objective.complementary
        draws = draws_of(shown, this.spec.block_size, this.spec.mask_token_id, objective.views_per_block, paired)
        return bound_of(this, "current", shown, draws, paired)
    states = trace_states(t, this.spec.block_size)
    if objective.estimate == "one_step":
        states = trace_states(dataclasses.replace(t, step_map=(1,) * len(t.step_map)), this.spec.block_size)
    return torch.cat([this.logprobs("current", t, state) for state in states]).sum()


def naive_loss(objective: WD1) -> Tensor:
    shown = iter(take_views(policies().groups, policies().spec, objective))
    return naive_wd1_loss([[(t.advantage, naive_logp(objective, next(shown))) for t in g] for g in policies().groups])


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_those_of_the_equation(options: dict, budget: int) -> None:
    objective = WD1(**options)
    policies().assert_close(policies().by_module(objective, moved=True, token_budget=budget), naive_loss(objective))


def test_the_estimates_differ() -> None:
    gradients = [policies().gradient(naive_loss(WD1(**options))) for options in CASES.values()]
    for one, other in itertools.pairwise(gradients):
        assert float((other - one).norm() / one.norm()) > 100 * CLOSE


def test_a_policy_that_has_moved_changes_nothing_but_what_it_says() -> None:
    found, other = (policies().by_module(WD1(), moved) for moved in (True, False))
    assert torch.equal(found[0], other[0]) and torch.equal(found[1], other[1])


def test_equals_cancel_and_weights_add_up_to_none() -> None:
    equals = [dataclasses.replace(t, advantage=0.3) for t in policies().groups[0]]
    assert [t.advantage for t in WD1().of_group(equals)] == [0.0] * 3
    weights = [t.advantage for t in WD1().of_group(policies().groups[0])]
    assert sum(weights) == pytest.approx(0) and weights[0] > 0 > weights[2]


def test_the_loss_is_a_mean_over_groups() -> None:
    assert step_batch(policies().groups, policies().spec, WD1(), 9, WHOLE).loss_divisor == 2


def test_plans_count_the_views() -> None:
    planned = [(WD1(**o).planned_views(2.5), WD1(**o).planned_scorings()) for o in CASES.values()]
    assert planned == [(2.0, 1.0), (3.0, 1.5), (2.5, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize("options", [{}, {"estimate": "trace"}])
def test_samples_of_older_weights_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"WD1 .*sample with the weights that learn"):
        check_stale("here", WD1(**options), PARAMS)


def test_an_unknown_estimate_is_refused_by_name_and_value() -> None:
    with pytest.raises(ValueError, match=r"objective\.estimate='bound': use elbo, trace or one_step"):
        WD1(estimate="bound")
