"""Parts of a step: with which probability each view is in them, and that the loss keeps its expectation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny import TinyModel, flat_gradient, prompt, sample_groups
from tests.unit.modules.test_dipo_loss import DYNAMIC, OLD, module_with

from dirl.objectives import DiPO
from dirl.objectives.subsets import Subset, drawn_weights, inclusion, systematic
from dirl.packing.rows import pack
from dirl.rl.steps import Shown, draw_subset, piece_groups, step_batch, take_views
from dirl.types import Trajectory

CHANCES = (np.array([0.5, 0.25, 0.75, 1.0]), np.array([0.5, 0.5, 0.5]), np.array([0.1, 0.2, 0.3]), np.array([1.0, 1.0]))


@pytest.mark.parametrize("chance", CHANCES, ids=str)
def test_each_is_drawn_with_its_probability(chance: np.ndarray) -> None:
    """For every order, and for the start at which the drawn ones change, by the length of the intervals in between."""
    for order in itertools.permutations(range(len(chance))):
        ordered = chance[list(order)]
        steps = np.unique(np.append([0.0, 1.0], (-ordered.cumsum()) % 1))
        share = sum(
            (b - a) * systematic(ordered, (a + b) / 2).astype(float)
            for a, b in itertools.pairwise(steps)
            if b - a > 1e-9
        )
        np.testing.assert_allclose(share, ordered, atol=1e-9)


def test_their_number_is_the_sum_of_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        weights = drawn_weights(np.full(9, 0.5), np.random.default_rng(seed))
        assert (weights > 0).sum() in (4, 5) and set(weights[weights > 0]) == {2.0}
    assert drawn_weights(np.ones(3), rng).tolist() == [1, 1, 1]
    assert len(drawn_weights([], rng)) == 0


def test_views_of_more_to_learn_from_are_likelier_and_none_is_impossible() -> None:
    chance = inclusion(np.array([0.0, 1.0, 2.0, 3.0]), 0.5)
    assert chance.sum() == pytest.approx(2.0)
    assert (np.diff(chance) > 0).all() and chance.min() >= 0.05 and chance.max() <= 1
    assert inclusion(np.zeros(3), 0.5).tolist() == [0.5] * 3
    certain = inclusion(np.array([100.0, 1.0, 1.0, 1.0]), 0.5)
    assert certain[0] == 1.0 and certain.sum() == pytest.approx(2.0)
    assert inclusion(np.array([3.0, 1.0]), 1.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view_fraction": 0.0}, r"objective\.view_fraction=0\.0: use a number above 0, up to 1"),
        ({"view_fraction": 1.5}, r"objective\.view_fraction=1\.5"),
        ({"trajectory_fraction": -0.1}, r"objective\.trajectory_fraction=-0\.1"),
        ({"view_choice": "best"}, r"objective\.view_choice='best': use uniform or weighted"),
        ({"view_fraction": 0.5, "ratio": "sequence"}, r"objective\.ratio=sequence .* objective\.view_fraction=0\.5"),
    ],
)
def test_options_that_are_none_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiPO(**options)


def groups() -> list[list[Trajectory]]:
    made = sample_groups(TinyModel(nudge=0.02), [prompt(6, 6), prompt(3)], 3, DYNAMIC)
    advantages = iter((1.3, -0.7, -1.1, 0.4, 0.9, -0.6))
    return [[replace(t, advantage=next(advantages)) for t in group] for group in made]


SPEC = OLD.describe().spec


def noised(shown: list[Shown]) -> int:
    return sum(each.views.inputs.size for each in shown)


def test_half_the_views_are_half_the_noised_tokens() -> None:
    for choice in ("uniform", "weighted"):
        objective = DiPO(view_fraction=0.5, view_choice=choice)
        whole = take_views(groups(), SPEC, objective)
        part = draw_subset(whole, objective.subset)
        assert noised(part) == pytest.approx(noised(whole) / 2, abs=SPEC.block_size)
        steps = [step_batch(groups(), SPEC, o, 9, 10_000) for o in (DiPO(), objective)]
        views = [sum(int((b.view_ids > 0).sum()) for b in step.micro_batches) for step in steps]
        assert views[1] == pytest.approx(views[0] / 2, abs=SPEC.block_size)
        assert steps[0].loss_divisor == steps[1].loss_divisor  # of all that was sampled


def test_two_thirds_of_each_group_are_two_of_three() -> None:
    objective = DiPO(trajectory_fraction=2 / 3)
    part = draw_subset(take_views(groups(), SPEC, objective), objective.subset)
    assert [each.group for each in part] == [0, 0, 1, 1]
    assert all((each.weights == 1.5).all() for each in part)


@pytest.mark.parametrize("likelihood", ["tokens", "trajectory"])
def test_the_loss_of_a_part_is_the_sum_of_its_views_each_with_its_weight(likelihood: str) -> None:
    """So the expectation over parts is the loss of all views, and that of the gradient its gradient."""
    objective = DiPO(likelihood=likelihood)
    module = module_with(objective, DYNAMIC)
    shown = take_views(groups(), SPEC, objective)
    rng = np.random.default_rng(0)
    chance = [rng.choice([0.0, 1.0, 2.5], len(each.views)) for each in shown]

    def gradient(chosen: list[Shown]) -> torch.Tensor:
        rows = pack(piece_groups(chosen, SPEC, objective), 10_000)
        losses = [module.loss(row, 1.0)[0] for row in rows]
        return flat_gradient(torch.stack(losses).sum(), module.model.parameters())

    def weighed(each: Shown, weights: np.ndarray) -> Shown:
        kept = weights > 0
        return each._replace(views=each.views[kept], weights=each.weights[kept] * weights[kept, None])

    part = [weighed(each, w) for each, w in zip(shown, chance, strict=True) if w.any()]
    singly = sum(
        weight * gradient([weighed(each, (np.arange(len(weights)) == view).astype(float))])
        for each, weights in zip(shown, chance, strict=True)
        for view, weight in enumerate(weights)
        if weight
    )
    found = gradient(part)
    assert float((found - singly).norm() / singly.norm()) < 1e-5


def test_a_part_is_drawn_by_seed_and_epoch_alone() -> None:
    def step(seed: int, epoch: int) -> list[list[int]]:
        made = step_batch(groups(), SPEC, DiPO(view_fraction=0.5), 9, 10_000, seed=(seed, epoch))
        return [row.position_ids.tolist() for row in made.micro_batches]

    assert step(0, 0) == step(0, 0)
    assert step(0, 0) != step(0, 1) and step(0, 0) != step(1, 0)


def test_a_subset_of_everything_leaves_everything() -> None:
    whole = take_views(groups(), SPEC, DiPO())
    assert draw_subset(whole, Subset()) == whole and draw_subset([], Subset(0.5)) == []
