"""Trajectories that add nothing to a loss are not computed, and loss and gradient stay what they are."""

import dataclasses

import pytest
import torch
from tests.unit.modules.test_dipo_loss import DYNAMIC, loss_and_gradient, make_step, module_with, move
from tests.unit.modules.test_dipo_loss import world as sampled

import dirl.rl.steps
from dirl.objectives import (
    SPG,
    WD1,
    BestOfGroup,
    BlockELBO,
    Coupled,
    DiPO,
    LightningRL,
    Objective,
    OneStep,
    RowLoss,
    ScoredRow,
    StableDRL,
    TraceRL,
)
from dirl.types import Trajectory

LEAVES_OUT = {
    "tokens": DiPO(),
    "trajectory": DiPO(likelihood="trajectory", importance_cap=1.02, normalization="sequence"),
    "ratio of a sequence": DiPO(ratio="sequence"),
    "cispo": DiPO(ratio="cispo", normalization="constant"),
    "no ratio, a part of the views": DiPO(ratio="none", view_fraction=0.5, view_choice="weighted"),
    "TraceRL": TraceRL(kl_coef=0.0),
    "OneStep": OneStep(),
    "Coupled": Coupled(),
    "BlockELBO": BlockELBO(),
    "SPG": SPG(),
    "WD1": WD1(),
}
NEEDS_ALL = {
    "KL": DiPO(kl_coef=0.1),
    "KL to the old policy": TraceRL(),
    "KL of a response": BlockELBO(kl_coef=0.1),
    "right answers": LightningRL(kl_coef=0.0),
    "values": TraceRL(value=True, kl_coef=0.0),
    "a sum of weights": StableDRL(),
    "no advantages": BestOfGroup(),
}


def some_without(advantages: tuple[float, ...] = (0.0, 0.0, 0.0, -1.0, 0.0, 1.0)) -> list[list[Trajectory]]:
    """A group of equals, and one in which one response is as good as the mean."""
    left = iter(advantages)
    return [
        [dataclasses.replace(t, advantage=next(left), reward=1.0, correct=True) for t in group]
        for group in sampled(DYNAMIC).groups
    ]


@pytest.mark.parametrize("objective", LEAVES_OUT.values(), ids=LEAVES_OUT.keys())
@pytest.mark.parametrize("budget", [48, 10_000])
def test_loss_and_gradient_are_those_of_the_whole_step(
    objective: Objective, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, spec, found = some_without(), sampled(DYNAMIC).spec, []
    for everything in (False, True):
        if everything:
            monkeypatch.setattr(dirl.rl.steps, "teaches", lambda *_: True)
        module = module_with(objective, DYNAMIC)
        (step,) = module.score_steps([make_step(groups, spec, objective, budget)], keep_old=True)
        move(module)
        tokens = sum(map(len, step.micro_batches))
        found.append((*loss_and_gradient(module, step), tokens, step.loss_divisor, step.sequences))
    (loss, gradient, tokens, *counts), (whole_loss, whole_gradient, whole_tokens, *whole_counts) = found
    assert tokens < 0.75 * whole_tokens and counts == whole_counts
    assert whole_gradient.norm() > 0.01
    torch.testing.assert_close(loss, whole_loss, atol=1e-6, rtol=1e-6)
    assert float((gradient - whole_gradient).norm() / whole_gradient.norm()) < 1e-6


@pytest.mark.parametrize("objective", NEEDS_ALL.values(), ids=NEEDS_ALL.keys())
def test_where_more_than_the_advantage_is_learned_from_nothing_is_left_out(objective: Objective) -> None:
    step = make_step(some_without(), sampled(DYNAMIC).spec, objective)
    assert sorted({int(i) for b in step.micro_batches for i in b.trajectory_ids if i >= 0}) == [*range(6)]


class WithEntropy(DiPO):
    """Someone else's, with a term of its own."""

    def loss(self, row: ScoredRow) -> RowLoss:
        total, sums = super().loss(row)
        return RowLoss(total + 0.1 * row.logprobs.sum(), sums)


class Named(DiPO):
    """Someone else's, whose loss is DiPO's."""


class AdvantagesOfItsOwn(DiPO):
    """Someone else's, where no token is without one."""

    def columns(self, trajectory: Trajectory) -> dict:
        return {**super().columns(trajectory), "advantages": [0.1] * len(trajectory.response_ids)}


def test_an_objective_of_someone_else_that_changes_the_loss_gets_all_of_it() -> None:
    spec, groups = sampled(DYNAMIC).spec, some_without()
    counts = {
        kind: len({int(i) for b in make_step(groups, spec, kind()).micro_batches for i in b.trajectory_ids} - {-1})
        for kind in (WithEntropy, Named, AdvantagesOfItsOwn)
    }
    assert counts == {WithEntropy: 6, Named: 2, AdvantagesOfItsOwn: 6}


def test_the_first_step_needs_no_log_probs_of_an_old_policy_beside_its_own() -> None:
    spec, groups, objective = sampled(DYNAMIC).spec, sampled(DYNAMIC).groups, DiPO()
    module = module_with(objective, DYNAMIC)
    steps = [make_step([group], spec, objective) for group in groups]
    first, second = module.score_steps(steps, keep_old=True, first_too=False)
    assert "old_logprobs" not in first.micro_batches[0].columns
    assert "old_logprobs" in second.micro_batches[0].columns
    stored, _ = module.score_steps(steps, keep_old=True)
    (loss, gradient), (with_stored, its_gradient) = (loss_and_gradient(module, step) for step in (first, stored))
    assert torch.equal(loss, with_stored) and torch.equal(gradient, its_gradient)
