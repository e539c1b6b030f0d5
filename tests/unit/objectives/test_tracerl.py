"""TraceRL: loss and gradient against eq. 3 of its paper on naive forwards, and what its options and views mean."""

from functools import cache

import numpy as np
import pytest
import torch
from tests.policies import CLOSE, DIVIDED, WHOLE, Policies, trace_states
from tests.reference import StepScores, naive_dipo_loss, naive_tracerl_loss
from tests.unit.diffusion.test_views import trajectory
from torch import Tensor

from dirl.objectives import DiPO, TraceRL
from dirl.rl.staleness import check_stale
from dirl.rl.steps import take_views
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
BOUNDS = {"clip_low": 0.05, "clip_high": 0.08}


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def naive_loss(objective: TraceRL, moved: bool) -> Tensor:
    this, found = policies(), []
    for t in this.trajectories:
        steps = []
        for state in trace_states(t, this.spec.block_size, objective.shrink):
            logp, old, reference = (this.logprobs(policy, t, state) for policy in ("current", "old", "reference"))
            steps.append(StepScores(logp, old if moved else logp.detach(), reference))
        found.append((t.advantage, steps))
    return naive_tracerl_loss(
        found,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        beta=objective.kl_coef,
        anchor=objective.kl_anchor,
        max_response_tokens=PARAMS.max_response_tokens if objective.normalization == "constant" else None,
    )


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shrink": 2, "kl_coef": 0.3, **BOUNDS},
        {"shrink": 3, "normalization": "constant", "kl_coef": 0.3},
        {"shrink": 4, "kl_coef": 0.3, "kl_anchor": "reference", **BOUNDS},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_the_equation(options: dict, moved: bool, budget: int) -> None:
    objective = TraceRL(**options)
    policies().assert_close(policies().by_module(objective, moved, budget), naive_loss(objective, moved))


def test_the_cases_above_differ() -> None:
    """Merging, bounds and KL all matter to the gradient, and there are blocks of two to four steps."""
    this = policies()
    assert {len(trace_states(t, 4)) for t in this.trajectories} != {
        len(trace_states(t, 4, 2)) for t in this.trajectories
    }
    assert {max(t.step_map) for t in this.trajectories} >= {3, 4}
    plain = this.gradient(naive_loss(TraceRL(kl_coef=0.0), moved=True))
    for options in ({"shrink": 2}, {"shrink": 3}, {"shrink": 4}, BOUNDS, {"kl_coef": 0.3}):
        other = this.gradient(naive_loss(TraceRL(**{"kl_coef": 0.0, **options}), moved=True))
        assert float((other - plain).norm() / plain.norm()) > 100 * CLOSE, options


def test_with_no_mean_over_steps_no_kl_and_nothing_merged_it_is_dipo() -> None:
    this = policies()
    options = {"clip_high": 0.28, "normalization": "token"}
    found = this.by_module(TraceRL(step_mean=False, kl_coef=0.0, **options), moved=True)
    wanted = this.by_module(DiPO(**options), moved=True)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1]) and found[2] == wanted[2]


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
def test_without_the_mean_over_steps_tokens_of_merged_steps_count_the_same(budget: int) -> None:
    this, objective = policies(), TraceRL(shrink=2, step_mean=False, kl_coef=0.0, normalization="constant")
    scored = [this.scored(t, trace_states(t, 4, 2), moved=True) for t in this.trajectories]
    limit = PARAMS.max_response_tokens
    wanted = naive_dipo_loss(scored, clip_low=0.2, clip_high=0.2, normalisation="constant", max_response_tokens=limit)
    this.assert_close(this.by_module(objective, moved=True, token_budget=budget), wanted)


def test_the_weights_of_a_step_add_up_to_one_over_the_steps() -> None:
    this = policies()
    for shown in take_views(this.groups, this.spec, TraceRL(shrink=2)):
        weights = np.where(shown.views.response_index >= 0, shown.weights, 0.0).sum(1)
        assert weights == pytest.approx(1 / len(trace_states(shown.trajectory, 4, 2)))


def test_the_log_has_the_kl_to_the_anchor_and_a_mismatch_only_where_tokens_are_scored_as_they_were_drawn() -> None:
    one = policies().by_module(TraceRL(), moved=True)[2]
    two = policies().by_module(TraceRL(shrink=2, kl_anchor="reference"), moved=True)[2]
    assert {"old_kl", "mismatch_kl", "mismatch_abs"} <= one.keys() and "reference_kl" not in one
    assert "reference_kl" in two and not {"old_kl", "mismatch_kl", "mismatch_abs"} & two.keys()
    assert one["old_kl"] > 0


def test_a_reference_is_kept_for_its_kl_alone() -> None:
    assert not TraceRL().needs_reference and not TraceRL(kl_coef=0.0, kl_anchor="reference").needs_reference
    assert TraceRL(kl_anchor="reference").needs_reference


def test_prompts_in_the_first_block_are_visible_in_merged_views() -> None:
    spec = policies().spec
    example = trajectory((1, 2, 3, 4, 5), (6, 7, 8), (2, 3, 1))
    views = TraceRL(shrink=2).views(example, spec, np.random.default_rng(0))
    mask = spec.mask_token_id
    assert views.inputs.tolist() == [[5, mask, mask, mask], [5, 6, mask, 8]]


@pytest.mark.parametrize(
    ("shrink", "steps", "views"),
    [(1, 2.6, 2.6), (2, 4.0, 2.0), (2, 3.0, 2.0), (2, 3.5, 2.0), (2, 4.5, 2.5), (8, 3.2, 1)],
)
def test_plans_count_the_views_of_merged_steps(shrink: int, steps: float, views: float) -> None:
    assert TraceRL(shrink=shrink).planned_views(steps) == pytest.approx(views)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": 0}, r"objective\.shrink=0: use 1"),
        ({"kl_anchor": "new"}, r"objective\.kl_anchor='new': use old or reference"),
        ({"shrink": 2, "importance_cap": 2.0}, r"objective\.importance_cap=2 .*objective\.shrink=2 .*use shrink=1"),
        ({"normalization": "token"}, r"objective\.normalization=token .*objective\.step_mean=true"),
        ({"kl_coef": -1.0}, r"objective\.kl_coef=-1\.0: use"),
        ({"view_fraction": 0.0}, r"objective\.view_fraction=0\.0: use"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_their_names(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceRL(**options)


def test_samples_of_older_weights_need_a_cap_and_unmerged_steps() -> None:
    check_stale("here", TraceRL(importance_cap=2.0), PARAMS)
    with pytest.raises(ValueError, match=r"importance_cap, e\.g\. to 2"):
        check_stale("here", TraceRL(), PARAMS)
    with pytest.raises(ValueError, match="use shrink=1"):
        check_stale("here", TraceRL(shrink=2), PARAMS)
