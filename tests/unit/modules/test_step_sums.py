"""When rows are scored once more before a step, so that a trajectory in several of them is known as a whole."""

import pytest
import torch
from tests.unit.modules.test_dipo_loss import DYNAMIC, loss_and_gradient, make_step, module_with, move
from tests.unit.modules.test_dipo_loss import world as sampled

from dirl.modules.step_sums import divided
from dirl.objectives import BlockELBO, DiPO

WHOLE, PARTS = 10_000, 32
OBJECTIVE = DiPO(ratio="sequence", clip_low=0.005, clip_high=0.004)


@pytest.mark.parametrize(
    ("objective", "budget", "moved", "needed"),
    [
        (OBJECTIVE, PARTS, True, True),
        (OBJECTIVE, WHOLE, True, False),  # each row knows its trajectories
        (OBJECTIVE, PARTS, False, False),  # all ratios are 1
        (DiPO(), PARTS, True, False),
    ],
)
def test_rows_are_scored_once_more_only_where_a_trajectory_is_divided_and_the_policy_has_moved(
    objective: DiPO, budget: int, moved: bool, needed: bool
) -> None:
    this = sampled(DYNAMIC)
    module = module_with(objective, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, objective, budget)], keep_old=moved)
    assert divided(step.micro_batches) == (budget == PARTS)
    forwards = []
    module.model.register_forward_hook(lambda *args: forwards.append(1))
    known = module.step_sums(step)
    assert (known is not None) == needed
    assert len(forwards) == (len(step.micro_batches) if needed else 0)


@pytest.mark.parametrize(("objective", "forwards"), [(BlockELBO(), 0), (BlockELBO(kl_coef=0.1), 1)])
def test_while_the_policy_has_not_moved_the_ratio_of_a_divided_response_is_known_without_a_forward(
    objective: BlockELBO, forwards: int
) -> None:
    this = sampled(DYNAMIC)
    module = module_with(objective, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, objective, PARTS // 2)], keep_old=False)
    if objective.needs_reference:
        for row in step.micro_batches:
            row.columns["reference_logprobs"] = torch.full_like(row.columns["advantages"], -1.0)
    made = []
    module.model.register_forward_hook(lambda *args: made.append(1))
    known = module.step_sums(step)
    assert len(made) == forwards * len(step.micro_batches) > 0 or not forwards
    module.objective.sums_need_scores = lambda moved: True
    scored = module.step_sums(step)
    assert known.sums.keys() == scored.sums.keys() and not known.sums["log_ratio"].any()
    assert all(torch.equal(known.sums[name], value) for name, value in scored.sums.items())


def test_parts_alone_would_have_another_ratio() -> None:
    """So the sums of a row are not those of the trajectory, and a step without the first pass would be wrong."""
    this = sampled(DYNAMIC)
    module = module_with(OBJECTIVE, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, OBJECTIVE, PARTS)], keep_old=True)
    move(module)
    right, _ = loss_and_gradient(module, step)
    alone = sum(float(module.loss(row, step.loss_divisor)[0].detach()) for row in step.micro_batches)
    assert abs(alone - float(right.detach())) > 1e-4


def test_sums_are_by_trajectory_over_all_rows() -> None:
    this = sampled(DYNAMIC)
    module = module_with(OBJECTIVE, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, OBJECTIVE, PARTS)], keep_old=True)
    move(module)
    known = module.step_sums(step)
    assert known.sums["weight"].tolist() == [float(len(t.response_ids)) for group in this.groups for t in group]
    wanted = [float((s.logp - s.old_logp).sum()) for s in this.scored]
    assert known.sums["log_ratio"].tolist() == pytest.approx(wanted, abs=1e-4)


def test_rows_without_trajectories_are_not_divided() -> None:
    assert not divided([])
