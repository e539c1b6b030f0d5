"""Coupled: DiPO's loss of each token where its part of the block is masked, by masks that all policies share."""

from functools import cache

import numpy as np
import pytest
from tests.policies import CLOSE, DIVIDED, WHOLE, Policies, State
from tests.reference import naive_dipo_loss
from torch import Tensor

from dirl.objectives import Coupled
from dirl.rl.staleness import check_stale
from dirl.rl.steps import take_views
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def drawn_states(objective: Coupled, seed: tuple[int, ...]) -> list[list[State]]:
    """The masks that are drawn for each trajectory; a mask is what is scored."""
    this, found = policies(), []
    for shown in take_views(this.groups, this.spec, objective, seed):
        starts = (shown.views.first_block + shown.views.view_block) * this.spec.block_size
        masked = shown.views.inputs == this.spec.mask_token_id
        sets = [tuple((start + np.flatnonzero(own)).tolist()) for start, own in zip(starts, masked, strict=True)]
        found.append([(own, own) for own in sets])
    return found


def naive_loss(objective: Coupled, moved: bool, seed: tuple[int, ...]) -> Tensor:
    this = policies()
    states = drawn_states(objective, seed)
    # With several pairs, those of a trajectory are its tokens scored several times, and their mean is wanted.
    return naive_dipo_loss(
        [this.scored(t, own, moved) for t, own in zip(this.trajectories, states, strict=True)],
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        normalisation=objective.normalization,
        max_response_tokens=PARAMS.max_response_tokens * objective.pairs,
        kl_coef=objective.kl_coef,
    )


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pairs": 2, "clip_low": 0.05, "clip_high": 0.08, "kl_coef": 0.3, "normalization": "sequence"},
        {"pairs": 2, "normalization": "constant"},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_the_equation(options: dict, moved: bool, budget: int) -> None:
    objective = Coupled(**options)
    found = policies().by_module(objective, moved, budget, seed=(3,))
    policies().assert_close(found, naive_loss(objective, moved, (3,)))


@pytest.mark.parametrize("pairs", [1, 3])
def test_every_token_is_scored_once_by_each_pair(pairs: int) -> None:
    for t, states in zip(policies().trajectories, drawn_states(Coupled(pairs=pairs), (0,)), strict=True):
        scored = sorted(i - len(t.prompt_ids) for _, own in states for i in own)
        assert scored == sorted([*range(len(t.response_ids))] * pairs)


@pytest.mark.parametrize("normalization", ["token", "sequence", "constant"])
def test_more_pairs_do_not_change_the_size_of_the_loss(normalization: str) -> None:
    """Many pairs are a mean: the loss is that of one pair, up to chance."""
    losses = [
        float(naive_loss(Coupled(pairs=pairs, normalization=normalization, clip_low=1, clip_high=1e9), True, (0,)))
        for pairs in (1, 8)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)


def test_masks_are_those_of_the_seed() -> None:
    assert drawn_states(Coupled(), (1,)) == drawn_states(Coupled(kl_coef=0.1), (1,)) != drawn_states(Coupled(), (2,))
    this = policies()
    one, other = (this.gradient(naive_loss(Coupled(), True, (seed,))) for seed in (1, 2))
    assert float((one - other).norm() / one.norm()) > 100 * CLOSE


def test_plans_have_two_views_for_each_pair() -> None:
    assert (Coupled().planned_views(3.4), Coupled(pairs=2).planned_views(1.0)) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, r"objective\.pairs=0: use"),
        ({"rate_low": 0.0}, r"objective\.rate_low=0\.0: use"),
        ({"rate_high": 1.0}, r"objective\.rate_high=1\.0: use"),
        ({"rate_low": 0.9}, r"objective\.rate_low=0\.9 is above objective\.rate_high=0\.8"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Coupled(**options)


def test_samples_of_older_weights_are_refused_and_no_mismatch_is_logged() -> None:
    with pytest.raises(ValueError, match="objective Coupled"):
        check_stale("here", Coupled(), PARAMS)
    assert not {"mismatch_kl", "mismatch_abs"} & policies().by_module(Coupled(), moved=True)[2].keys()
