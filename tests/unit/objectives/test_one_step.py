"""One-step: DiPO's loss of each token where its block is masked whole, whatever decoded it, and how wrong that is."""

from functools import cache

import pytest
from tests.policies import DIVIDED, WHOLE, Policies, State
from tests.reference import naive_dipo_loss

from dirl.objectives import OneStep
from dirl.rl.staleness import check_stale
from dirl.types import DecodingParams, Trajectory

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def whole_blocks(t: Trajectory, block_size: int) -> list[State]:
    positions = range(len(t.prompt_ids), len(t.prompt_ids) + len(t.response_ids))
    blocks = sorted({i // block_size for i in positions})
    return [(own, own) for b in blocks if (own := tuple(i for i in positions if i // block_size == b))]


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize(
    "options", [{}, {"clip_low": 0.05, "clip_high": 0.08, "kl_coef": 0.3, "normalization": "sequence"}], ids=str
)
def test_loss_and_gradient_are_those_of_the_equation(options: dict, moved: bool, budget: int) -> None:
    this, objective = policies(), OneStep(**options)
    wanted = naive_dipo_loss(
        [this.scored(t, whole_blocks(t, 4), moved) for t in this.trajectories],
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        normalisation=objective.normalization,
        kl_coef=objective.kl_coef,
    )
    this.assert_close(this.by_module(objective, moved, budget), wanted)


def test_it_has_one_view_a_block_also_in_plans() -> None:
    assert OneStep().planned_views(3.4) == 1.0


def test_no_mismatch_is_logged_as_tokens_are_not_scored_where_they_were_drawn() -> None:
    assert not {"mismatch_kl", "mismatch_abs"} & policies().by_module(OneStep(), moved=True)[2].keys()


def test_samples_of_older_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="objective OneStep"):
        check_stale("here", OneStep(), PARAMS)
