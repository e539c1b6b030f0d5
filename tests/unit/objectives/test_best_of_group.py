"""Best of group: loss and gradient against SFT's eq. 3 on the right answers alone, by naive forwards."""

import dataclasses
from functools import cache

import pytest
import torch
from tests.policies import DIVIDED, WHOLE, Policies
from tests.reference import naive_sft_loss
from torch import Tensor

from dirl.batches import IGNORE
from dirl.diffusion.noise import NoiseConfig
from dirl.objectives import BestOfGroup
from dirl.rl.staleness import check_stale
from dirl.rl.steps import step_batch, take_views
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
RIGHT = (True, False, True, False, True, False)
CASES = {
    "one view": NoiseConfig(t_min=0.2),
    "pairs": NoiseConfig(views_per_block=4, complementary=True, t_min=0.1, t_max=0.9),
    "one rate a sequence": NoiseConfig(views_per_block=2, noise_scope="sequence", t_min=0.3),
}


@cache
def policies() -> Policies:
    this, right = Policies.sample(PARAMS), iter(RIGHT)
    groups = [[dataclasses.replace(t, correct=next(right)) for t in group] for group in this.groups]
    return dataclasses.replace(this, groups=groups)


def naive_loss(objective: BestOfGroup) -> Tensor:
    """Eq. 3 of each noised copy of each right answer, whose mean over copies is summed and divided by their tokens."""
    this, total, tokens = policies(), torch.zeros((), dtype=torch.float64), 0
    size, copies = this.spec.block_size, objective.noise.views_per_block
    for shown in take_views(this.groups, this.spec, objective):
        t, views = shown.trajectory, shown.views
        if not t.correct:
            continue
        head = len(t.prompt_ids)
        response = range(head, head + len(t.response_ids))
        tokens += len(response)
        for copy in range(1, copies + 1):
            logprobs: dict[int, Tensor] = {}
            rates: dict[int, float] = {}
            for v in (views.view_number == copy).nonzero()[0]:
                block = views.first_block + int(views.view_block[v])
                masked = tuple(block * size + j for j in range(size) if views.inputs[v, j] == this.spec.mask_token_id)
                logprobs |= dict(zip(masked, this.logprobs("current", t, (masked, masked)), strict=True))
                (rates[block],) = {round(1 / w / copies, 12) for w in shown.weights[v][views.targets[v] != IGNORE]}
            every = torch.stack([logprobs.get(i, torch.zeros((), dtype=torch.float64)) for i in range(response.stop)])
            total = total + naive_sft_loss(every, rates, list(logprobs), response, size) * len(response) / copies
    return total / tokens


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("noise", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_sfts_on_the_right_answers(noise: NoiseConfig, budget: int) -> None:
    objective = BestOfGroup(noise)
    policies().assert_close(policies().by_module(objective, moved=True, token_budget=budget), naive_loss(objective))


def test_advantages_and_old_weights_do_not_matter() -> None:
    objective, this = BestOfGroup(), policies()
    groups = [[dataclasses.replace(t, advantage=-3.0) for t in group] for group in this.groups]
    found, other = this.by_module(objective, True), dataclasses.replace(this, groups=groups).by_module(objective, False)
    assert torch.equal(found[0], other[0]) and torch.equal(found[1], other[1])
    check_stale("here", objective, PARAMS)


def test_wrong_answers_are_in_no_row() -> None:
    this = policies()
    step = step_batch(this.groups, this.spec, BestOfGroup(), 9, WHOLE)
    (row,) = step.micro_batches
    assert set(row.trajectory_ids.tolist()) <= {-1, 0, 2, 4}
    assert step.loss_divisor == sum(len(t.response_ids) for t in this.trajectories if t.correct)
    assert step.sequences == 6


def test_a_step_without_a_right_answer_is_empty() -> None:
    this = policies()
    wrong = [[dataclasses.replace(t, correct=False) for t in group] for group in this.groups]
    step = step_batch(wrong, this.spec, BestOfGroup(), 9, WHOLE)
    assert (step.micro_batches, step.loss_divisor) == ([], 0.0)


def test_answers_that_nothing_has_judged_are_refused() -> None:
    unjudged = [[dataclasses.replace(t, correct=None) for t in group] for group in policies().groups]
    with pytest.raises(ValueError, match="0#0: nothing says whether it is right"):
        step_batch(unjudged, policies().spec, BestOfGroup(), 9, WHOLE)


def test_plans_count_the_views_of_the_noise() -> None:
    objective = BestOfGroup(CASES["pairs"])
    assert (objective.planned_views(2.5), objective.planned_scorings()) == (4.0, 2.0)
