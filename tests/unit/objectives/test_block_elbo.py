"""Block ELBO: loss and gradient against ESPO's and EBPO's equations on naive forwards, and what its options mean."""

from functools import cache

import pytest
import torch
from tests.bound_states import bound_of, draws_of
from tests.policies import CLOSE, DIVIDED, WHOLE, Policies
from tests.reference import BoundScores, naive_elbo_loss
from torch import Tensor

from dirl.modules.step_sums import StepSums
from dirl.objectives import BlockELBO, ScoredRow
from dirl.rl.staleness import check_stale
from dirl.rl.steps import take_views
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
TIGHT = {"clip_low": 0.005, "clip_high": 0.008}
ESPO = {"views_per_block": 4, "kl_coef": 0.3, **TIGHT}
EBPO = {"complementary": False, "length_normalized": False, "clip_low": 0.05, "clip_high": 0.08}
CASES = {
    "defaults": {},
    "ESPO": ESPO,
    "EBPO": EBPO,
    "EBPO, one set, k3": {**EBPO, "views_per_block": 1, "kl_coef": 0.3, "kl": "k3"},
    "three sets": {"views_per_block": 3, "complementary": False, "kl_coef": 0.3, "kl": "k3"},
}


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def naive_loss(objective: BlockELBO, moved: bool) -> Tensor:
    this, found, paired = policies(), [], objective.complementary
    for shown in take_views(this.groups, this.spec, objective):
        draws = draws_of(shown, this.spec.block_size, this.spec.mask_token_id, objective.views_per_block, paired)
        names = ("current", "old" if moved else "current", "reference")
        bounds = (bound_of(this, policy, shown, draws, paired) for policy in names)
        found.append(BoundScores(shown.trajectory.advantage, len(shown.trajectory.response_ids), *bounds))
    return naive_elbo_loss(
        found,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        per_token=objective.length_normalized,
        kl_coef=objective.kl_coef,
        kl=objective.kl,
    )


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_those_of_the_equation(options: dict, moved: bool, budget: int) -> None:
    objective = BlockELBO(**options)
    policies().assert_close(policies().by_module(objective, moved, budget), naive_loss(objective, moved))


def test_the_cases_above_differ_and_some_responses_are_clipped() -> None:
    plain = policies().gradient(naive_loss(BlockELBO(), moved=True))
    for options in (TIGHT, {"length_normalized": False}, {"kl_coef": 0.3}, {"kl_coef": 0.3, "kl": "k3"}):
        other = policies().gradient(naive_loss(BlockELBO(**options), moved=True))
        assert float((other - plain).norm() / plain.norm()) > 100 * CLOSE, options
    for options in (ESPO, EBPO):
        sums = policies().by_module(BlockELBO(**options), moved=True)[2]
        assert 0 < sums["clip_fraction"] < sums["tokens"]
        assert sums["bounded"] == 0


def test_old_and_current_see_the_same_masks_so_the_ratio_is_one_before_a_step() -> None:
    sums = policies().by_module(BlockELBO(), moved=False)[2]
    assert sums["ratio"] == sums["tokens"] and sums["clip_fraction"] == 0


def test_a_reference_is_kept_for_its_kl_alone() -> None:
    assert BlockELBO(kl_coef=0.1).needs_reference and not BlockELBO().needs_reference
    assert "reference_kl" not in policies().by_module(BlockELBO(), moved=True)[2]
    assert policies().by_module(BlockELBO(kl_coef=0.1), moved=True)[2]["reference_kl"] > 0


def test_a_rank_with_fewer_rows_than_others_has_loss_zero() -> None:
    none = torch.zeros(0, requires_grad=True)
    columns = {name: none.detach() for name in ("advantages", "length", "reference_logprobs")}
    row = ScoredRow(none, none.detach(), none.detach(), torch.zeros(0, dtype=torch.long), columns)
    objective = BlockELBO(kl_coef=0.1)
    found = objective.loss(StepSums.of_rows(objective, [row], 1).beside(row))
    assert found.loss.item() == 0 and found.loss.requires_grad


def test_plans_count_the_views() -> None:
    objective = BlockELBO(views_per_block=4)
    assert (objective.planned_views(2.5), objective.planned_scorings()) == (4.0, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views_per_block": 0}, r"objective\.views_per_block=0: use at least 1"),
        ({"views_per_block": 3}, r"objective\.views_per_block=3 with objective\.complementary=true: pairs need"),
        ({"clip_low": 1.5}, r"objective\.clip_low=1\.5: use"),
        ({"clip_high": -0.5}, r"objective\.clip_high=-0\.5: use"),
        ({"kl_coef": -1.0}, r"objective\.kl_coef=-1\.0: use"),
        ({"kl": "k1"}, r"objective\.kl='k1': use k2 or k3"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_their_names(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockELBO(**options)


def test_samples_of_older_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BlockELBO estimates likelihoods at masks of its own"):
        check_stale("here", BlockELBO(), PARAMS)
