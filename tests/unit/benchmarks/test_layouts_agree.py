"""The four layouts of a policy update: the same gradient, and the tokens that their descriptions say."""

import dataclasses

import pytest
import torch
from benchmarks.baselines import LAYOUTS, Limits, dirl_batches, one_forward_batches, per_step_batches, tracerl_batches
from benchmarks.shapes import TOYS, model_config, model_spec, random_backbone
from benchmarks.update import accumulate_gradient, computed_pairs, scored_tokens
from benchmarks.workload import Load, make_groups
from torch import Tensor

from dirl.attention import dense_mask
from dirl.batches import IGNORE, PackedBatch
from dirl.models import BlockDiffusionLM
from dirl.planning import visible_pairs
from dirl.types import ModelSpec, Trajectory

SHAPE = dataclasses.replace(TOYS["tiny"], num_hidden_layers=2)
LIMITS = Limits(prompt=16, response=48, token_budget=128)
LOADS = [
    Load(4, 2, groups=2, group_size=3, prompt_tokens=10, shortest=9, longest=30),
    Load(4, 4, groups=1, group_size=2, prompt_tokens=3, shortest=1, longest=7, steps="equal"),
    Load(8, 1, groups=1, group_size=2, prompt_tokens=16, shortest=5, longest=40),
    Load(16, 4, groups=1, group_size=2, prompt_tokens=15, shortest=17, longest=32, steps="equal"),
]


def gradient(batches: list[PackedBatch], spec: ModelSpec) -> Tensor:
    """In float64, with weights large enough for distributions that are not flat."""
    backbone = random_backbone(model_config(SHAPE, spec.block_size)).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() > 1:
                parameter *= 10
    model = BlockDiffusionLM(backbone, spec, "dense")
    accumulate_gradient(model, batches, float(scored_tokens(batches)))
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("load", LOADS, ids=lambda load: f"B{load.block_size}-{load.tokens_per_step}-{load.steps}")
def test_all_layouts_give_the_same_gradient(load: Load) -> None:
    spec = model_spec(SHAPE, load.block_size)
    groups = make_groups(load, spec)
    wanted = gradient(one_forward_batches(groups, spec, LIMITS), spec)
    assert wanted.norm() > 1e-3
    for name in ("dirl", "tracerl", "per_step"):
        found = gradient(LAYOUTS[name](groups, spec, LIMITS), spec)
        # transformers' RMSNorm and rotary embedding compute in float32
        assert (found - wanted).norm() < 1e-5 * wanted.norm(), name


def test_a_step_scored_with_one_token_too_many_visible_is_another_gradient() -> None:
    """The comparison above can fail: at a later step the same targets stand in another context."""
    load = LOADS[0]
    spec = model_spec(SHAPE, load.block_size)
    groups = make_groups(load, spec)
    wanted = gradient(one_forward_batches(groups, spec, LIMITS), spec)
    batches = dirl_batches(groups, spec, LIMITS)
    shown = int((batches[0].target_ids != IGNORE).nonzero()[0])
    batches[0].input_ids[shown] = batches[0].target_ids[shown]
    assert (gradient(batches, spec) - wanted).norm() > 1e-3 * wanted.norm()


def hand_made() -> tuple[list[list[Trajectory]], ModelSpec]:
    """B = 4, prompt of 6 (a block and a half), 10 response positions: blocks of 2 (one step), 4 (two), 4 (four)."""
    spec = model_spec(SHAPE, 4)
    trajectory = Trajectory(
        "p", 0, (1, 2, 3, 4, 5, 6), tuple(range(7, 17)), 10, (1, 1, 2, 1, 2, 2, 4, 3, 2, 1), (-4.0,) * 10, "length", 0
    )
    return [[dataclasses.replace(trajectory, advantage=1.0)]], spec


def test_the_tokens_of_a_hand_made_row_are_those_of_the_descriptions() -> None:
    groups, spec = hand_made()
    tokens = {name: [len(b) for b in layout(groups, spec, LIMITS)] for name, layout in LAYOUTS.items()}
    assert tokens["dirl"] == [2 * (16 + 48)] * 4  # B forwards, whatever the steps
    # prompt and response, and its three blocks again; at each of the four steps of the last block
    assert tokens["tracerl"] == [16 + 12] * 4
    # step 1 and its clean context: all three blocks; step 2: the last two; steps 3 and 4: the last one
    assert sorted(tokens["per_step"]) == sorted([12 + 12, 12 + 8, 12 + 4, 12 + 4])
    assert tokens["one_forward"] == [12 + (1 + 2 + 4) * 4]


def test_padding_is_seen_by_nobody_and_scores_nothing() -> None:
    groups, spec = hand_made()
    batch = dirl_batches(groups, spec, LIMITS)[0]
    real = 2 * 16
    mask = dense_mask(batch.layout)
    assert not mask[:real, real:].any()
    assert int(mask[real:].sum()) == (len(batch) - real) * 4  # each padding token its own block alone
    assert (batch.target_ids[real:] == IGNORE).all()
    assert visible_pairs(batch.layout) == int(mask.sum())


def test_every_token_is_scored_once_by_every_layout() -> None:
    groups, spec = hand_made()
    for layout in (dirl_batches, tracerl_batches, per_step_batches, one_forward_batches):
        scored = [
            int(b.target_ids[i]) for b in layout(groups, spec, LIMITS) for i in (b.target_ids != IGNORE).nonzero()
        ]
        assert sorted(scored) == list(range(7, 17))


def test_rows_over_the_limits_are_refused() -> None:
    groups, spec = hand_made()
    with pytest.raises(ValueError, match="over the limits of 12"):
        dirl_batches(groups, spec, Limits(prompt=4, response=8))


def test_computed_pairs_are_never_less_than_the_visible_ones() -> None:
    spec = model_spec(SHAPE, 4)
    groups = make_groups(Load(group_size=2, shortest=150, longest=200), spec)
    layout = one_forward_batches(groups, spec, Limits())[0].layout
    assert computed_pairs(layout, "dense") == len(layout) ** 2
    visible = visible_pairs(layout)
    assert visible == int(dense_mask(layout).sum())
    assert visible <= computed_pairs(layout, "segments") < 2 * visible
    assert visible <= computed_pairs(layout, "flex") < 4 * visible
