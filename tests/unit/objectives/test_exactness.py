"""Which objectives' gradients are those of the expected reward, and how far off the others are, by enumeration.

On the toy blocks of `tests.unit.test_selection_enumeration` an objective is judged by the sum of the log-probs that its
views score: the policy gradient made of it against the gradient of the expected reward.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tests.unit.test_selection_enumeration import (
    BLIND,
    DYNAMIC,
    EXACT,
    MASK,
    STARTS,
    STATIC,
    VOCAB,
    Path,
    State,
    Toy,
    after,
    gradient_error,
    masked_positions,
    plain,
)
from torch import Tensor

from dirl.batches import IGNORE
from dirl.objectives import Coupled, Leftmost, Objective, OneStep, TraceRL
from dirl.types import DecodingParams, ModelSpec, Trajectory

TOYS = [(start, seed) for start in STARTS.values() for seed in (0, 3)]
Likelihood = Callable[[Toy, Path], Tensor]


def trajectory_of(toy: Toy, path: Path) -> Trajectory:
    tokens = after(*path[-1])
    steps = {j: number for number, (_, committed) in enumerate(path, 1) for j, _ in committed}
    response = tuple(tokens[j] for j in sorted(steps))
    return Trajectory(
        prompt_id="toy",
        sample_index=0,
        prompt_ids=tuple(token for token in toy.start if token != MASK),
        response_ids=response,
        response_length=len(response),
        step_map=tuple(steps[j] for j in sorted(steps)),
        behaviour_logprobs=(0.0,) * len(response),
        finish_reason="length",
        policy_version=0,
    )


def by_views(objective: Objective) -> Likelihood:
    """The sum that an objective without random views takes for the log-likelihood."""

    def likelihood(toy: Toy, path: Path) -> Tensor:
        spec = ModelSpec(len(toy.start), MASK, stop_token_ids=(0,), pad_token_id=0, vocab_size=VOCAB + 1)
        views = objective.views(trajectory_of(toy, path), spec, np.random.default_rng(0))
        scored = [
            torch.log(toy.probs(tuple(inputs))[j][0][y])
            for inputs, targets in zip(views.inputs.tolist(), views.targets.tolist(), strict=True)
            for j, y in enumerate(targets)
            if y != IGNORE
        ]
        return torch.stack(scored).sum()

    return likelihood


def by_coupled_masks(toy: Toy, path: Path) -> Tensor:
    """The expectation over all masks at rate 1/2, at which every set is as likely; not by the code of `Coupled`."""
    tokens, masked = after(*path[-1]), masked_positions(toy.start)
    chosen = [set(s) for n in range(1, len(masked) + 1) for s in itertools.combinations(masked, n)]
    total = torch.zeros((), dtype=torch.float64)
    for own in chosen:
        state = tuple(MASK if j in own else token for j, token in enumerate(tokens))
        # of a pair one is this set with chance 2^-n, and the other one too
        share = 2 * 0.5 ** len(masked)
        total = total + share * sum(torch.log(toy.probs(state)[j][0][tokens[j]]) for j in own)
    return total


def errors(params: DecodingParams, likelihood: Likelihood) -> Iterator[float]:
    return (gradient_error(Toy(start, params, seed), likelihood, baseline=True) for start, seed in TOYS)


@pytest.mark.parametrize("name", ["sequential", "sequential cut"])
def test_the_gradient_of_leftmost_is_exact(name: str) -> None:
    assert max(errors(BLIND[name], by_views(Leftmost()))) < EXACT


@pytest.mark.parametrize("name", BLIND)
def test_the_gradient_of_tracerl_with_nothing_merged_is_exact_where_positions_are_chosen_by_rule(name: str) -> None:
    assert max(errors(BLIND[name], by_views(TraceRL()))) < EXACT


@pytest.mark.parametrize("params", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_with_nothing_merged_tracerl_takes_the_plain_sum_of_dipo(params: DecodingParams) -> None:
    toy = Toy(TOYS[2][0], params, 0)
    assert gradient_error(toy, by_views(TraceRL())) == pytest.approx(gradient_error(toy, plain))


OFF: dict[str, tuple[Likelihood, float, float]] = {
    "TraceRL, shrink 2": (by_views(TraceRL(shrink=2)), 0.53, 1.96),
    "Coupled": (by_coupled_masks, 0.38, 1.28),
    "OneStep": (by_views(OneStep()), 0.74, 2.49),
}
"""With the least and the largest relative error found, of one token a step."""


@pytest.mark.parametrize("name", OFF)
def test_the_others_are_biased_even_where_the_sum_over_steps_is_exact(name: str) -> None:
    likelihood, least, most = OFF[name]
    found = [error for decoding in ("sequential", "static by max") for error in errors(BLIND[decoding], likelihood)]
    assert (min(found), max(found)) == pytest.approx((least, most), abs=0.01)


def test_one_step_is_exact_where_blocks_are_committed_at_once() -> None:
    at_once = DecodingParams(strategy="sequential", denoising_steps=1)
    assert max(errors(at_once, by_views(OneStep()))) < EXACT


def test_the_views_of_coupled_are_the_masks_that_were_enumerated() -> None:
    """Of many draws at rate 1/2 the mean is the expectation over all sets."""
    start: State = STARTS["3"]
    toy = Toy(start, BLIND["dynamic by max"], 0)
    path = (((MASK,) * 3, ((0, 1), (2, 0))), ((1, MASK, 0), ((1, 2),)))
    spec = ModelSpec(3, MASK, stop_token_ids=(0,), pad_token_id=0, vocab_size=VOCAB + 1)
    objective, rng = Coupled(pairs=4000, rate_low=0.5, rate_high=0.5), np.random.default_rng(0)
    views = objective.views(trajectory_of(toy, path), spec, rng)
    total = sum(
        float(torch.log(toy.probs(tuple(inputs))[j][0][y]).detach())
        for inputs, targets in zip(views.inputs.tolist(), views.targets.tolist(), strict=True)
        for j, y in enumerate(targets)
        if y != IGNORE
    )
    assert total / objective.pairs == pytest.approx(float(by_coupled_masks(toy, path).detach()), rel=0.01)
