"""SPG and StableDRL: loss and gradient against their equations on naive forwards, and what their options mean."""

from functools import cache

import pytest
import torch
from tests.bound_states import draws_of
from tests.policies import CLOSE, DIVIDED, WHOLE, Policies, Policy
from tests.reference import Sandwich, naive_sandwich, naive_spg_loss, naive_stable_drl_loss
from torch import Tensor

from dirl.modules.step_sums import StepSums
from dirl.objectives import SPG, StableDRL
from dirl.rl.staleness import check_stale
from dirl.rl.steps import Shown, take_views
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
CASES = {
    "defaults": SPG(),
    "pure upper bound, three sets": SPG(mix=1.0, beta=2.0, views_per_block=3),
    "pairs": SPG(views_per_block=4, complementary=True),
    "StableDRL": StableDRL(),
    "StableDRL, clipped": StableDRL(weight_low=0.7, weight_high=1.02, views_per_block=3),
}


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def bounds(objective: SPG, policy: Policy, shown: Shown) -> list[Tensor]:
    """Lower and upper."""
    this, paired = policies(), objective.complementary
    draws = draws_of(shown, this.spec.block_size, this.spec.mask_token_id, objective.views_per_block, paired)
    found = [
        naive_sandwich(
            lambda masked: this.logprobs(policy, shown.trajectory, (masked, masked)),
            *(maskable, sets, paired, objective.beta),
        )
        for maskable, sets in draws
    ]
    return [torch.stack(side).sum() for side in zip(*found, strict=True)]


def naive_loss(objective: SPG, moved: bool = True) -> Tensor:
    this, found = policies(), []
    for shown in take_views(this.groups, this.spec, objective):
        lower, upper = bounds(objective, "current", shown)
        old = bounds(objective, "old", shown)[0] if moved else lower
        found.append(Sandwich(shown.trajectory.advantage, len(shown.trajectory.response_ids), lower, upper, old))
    if isinstance(objective, StableDRL):
        return naive_stable_drl_loss(found, objective.mix, objective.weight_low, objective.weight_high)
    return naive_spg_loss(found, objective.mix)


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize("objective", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_those_of_the_equation(objective: SPG, moved: bool, budget: int) -> None:
    policies().assert_close(policies().by_module(objective, moved, budget), naive_loss(objective, moved))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SPG(), SPG(mix=1.0)),
        (SPG(), SPG(beta=3.0)),
        (SPG(), StableDRL()),
        (StableDRL(), StableDRL(weight_low=0.7, weight_high=1.02)),
    ],
)
def test_the_options_matter_to_the_gradient(one: SPG, other: SPG) -> None:
    first, second = (policies().gradient(naive_loss(objective)) for objective in (one, other))
    assert float((second / second.norm() - first / first.norm()).norm()) > 100 * CLOSE


def test_the_upper_bound_of_a_token_that_one_set_masks_has_its_gradient_whatever_beta() -> None:
    """1 / beta log(w p^beta) is log p and a constant."""
    pair = [policies().gradient(naive_loss(SPG(1.0, beta, 2, complementary=True))) for beta in (1.0, 3.0)]
    assert torch.allclose(*pair)


def test_some_weights_are_clipped_and_before_a_step_all_are_one() -> None:
    objective = CASES["StableDRL, clipped"]
    sums = policies().by_module(objective, moved=True)[2]
    assert 0 < sums["clip_fraction"] < sums["tokens"]
    before = policies().by_module(objective, moved=False)[2]
    assert before["clip_fraction"] == 0 and before["ratio"] == before["tokens"]


def test_an_empty_step_has_no_totals() -> None:
    assert StepSums.of_rows(StableDRL(), [], 0, lambda value: value).totals == {}


def test_only_stable_drl_asks_the_old_policy() -> None:
    assert StableDRL().needs_old and not SPG().needs_old


@pytest.mark.parametrize("kind", [SPG, StableDRL])
def test_samples_of_older_weights_are_refused(kind: type[SPG]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} estimates likelihoods at masks of its own"):
        check_stale("here", kind(), PARAMS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mix", 1.5), ("beta", 0.5), ("views_per_block", 0), ("weight_low", 1.5), ("weight_high", 0.5)],
)
def test_settings_out_of_range_are_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"objective\.{name}={value!r}: use"):
        StableDRL(**{name: value})
