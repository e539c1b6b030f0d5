"""Groups of trajectories cut into optimizer steps, each packed and normalised as a whole."""

import itertools
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from dirl.batches import IGNORE, StepBatch
from dirl.diffusion.views import Views
from dirl.objectives import Objective
from dirl.objectives.subsets import EVERYTHING, Subset
from dirl.packing.pieces import PieceGroup, prompt, response
from dirl.packing.rows import pack
from dirl.seeds import derived_seed
from dirl.types import ModelSpec, Trajectory


def cut_steps(
    groups: Sequence[list[Trajectory]], count: int, dealt: Sequence[int] = ()
) -> list[list[list[Trajectory]]]:
    """`count` runs of consecutive groups, some of them empty if groups are few.

    Args:
        dealt: prompts of each step that the groups were asked of; where some were dropped, the sizes are in proportion.
            Empty: as many in each.
    """
    ends = list(itertools.accumulate(dealt or [1] * count, initial=0))
    bounds = [round(end * len(groups) / (ends[-1] or 1)) for end in ends]
    return [list(groups[a:b]) for a, b in itertools.pairwise(bounds)]


def step_batch(
    groups: Sequence[list[Trajectory]],
    spec: ModelSpec,
    objective: Objective,
    max_response_tokens: int,
    token_budget: int,
    share_prompt: bool = True,
    seed: tuple[int, ...] = (0,),
) -> StepBatch:
    """What the objective makes of the groups of one optimizer step, packed; without what adds nothing to its loss.

    Args:
        share_prompt: False gives every trajectory a copy of the prompt of its own.
        seed: of what is drawn: views, with the trajectory's prompt and number, and the part that is learned from.
    """
    shown = take_views(groups, spec, objective, seed)
    scored = sum(int((each.views.targets != IGNORE).sum()) for each in shown)
    divisor = objective.divisor([each.trajectory for each in shown], scored, max_response_tokens)
    learned = [each for each in draw_subset(shown, objective.subset, seed) if teaches(each.trajectory, objective)]
    rows = pack(piece_groups(learned, spec, objective, share_prompt), token_budget)
    tokens = sum(len(each.trajectory.response_ids) for each in learned)
    return StepBatch(rows, divisor, len(shown), token_budget, tokens)


class Shown(NamedTuple):
    """A trajectory as an objective shows it to the model."""

    trajectory: Trajectory
    group: int
    number: int
    """The number of its group, and of the trajectory itself, in the optimizer step."""
    views: Views
    weights: np.ndarray
    """[V, B] of the scored tokens in the loss."""


def take_views(
    groups: Sequence[Sequence[Trajectory]], spec: ModelSpec, objective: Objective, seed: tuple[int, ...] = (0,)
) -> list[Shown]:
    """The views that the objective takes of each trajectory, group by group."""
    found: list[Shown] = []
    for number, group in enumerate(groups):
        for trajectory in objective.of_group(group):
            rng = np.random.default_rng(derived_seed("views", *seed, *trajectory.key))
            views = objective.views(trajectory, spec, rng)
            weights = np.broadcast_to(objective.weights(trajectory, views), views.targets.shape)
            found.append(Shown(trajectory, number, len(found), views, weights))
    return found


def draw_subset(shown: Sequence[Shown], subset: Subset, seed: tuple[int, ...] = (0,)) -> list[Shown]:
    """The part of a step that is learned from, each weighed by one over its probability; nothing is without views."""
    shown = [each for each in shown if len(each.views)]
    if subset == EVERYTHING or not shown:
        return shown
    rng = np.random.default_rng(derived_seed("subset", *seed, *shown[0].trajectory.key))
    sizes = Counter(each.group for each in shown)
    factors = np.concatenate([subset.of_trajectories(size, rng) for size in sizes.values()])
    kept = [each._replace(weights=each.weights * f) for each, f in zip(shown, factors, strict=True) if f]
    of_views = subset.of_views(np.concatenate([view_surprise(each) for each in kept]), rng)
    ends = np.cumsum([len(each.views) for each in kept])
    found = [
        each._replace(views=each.views[own > 0], weights=(each.weights * own[:, None])[own > 0])
        for each, own in zip(kept, np.split(of_views, ends[:-1]), strict=True)
    ]
    return [each for each in found if len(each.views)]


def teaches(trajectory: Trajectory, objective: Objective) -> bool:
    """Whether it may add something to the loss: not where that is in proportion to advantages, which are all 0."""
    return not objective.scaled_by_advantages or bool(np.any(objective.columns(trajectory)["advantages"]))


def view_surprise(shown: Shown) -> np.ndarray:
    """[V] |advantage| times -log p of each view's scored tokens when they were sampled, nats."""
    surprise = -np.array((*shown.trajectory.behaviour_logprobs, 0.0))[shown.views.response_index]
    return abs(shown.trajectory.advantage or 0.0) * np.maximum(surprise, 0.0).sum(1)


def piece_groups(
    shown: Sequence[Shown], spec: ModelSpec, objective: Objective, share_prompt: bool = True
) -> list[PieceGroup]:
    """The responses of each group behind their prompt; see `step_batch`."""
    found: list[PieceGroup] = []
    for _, members in groupby(shown, key=lambda each: each.group):
        group = list(members)
        responses = [response(m.views, m.weights, objective.columns(m.trajectory), m.number) for m in group]
        shared = prompt(group[0].trajectory.prompt_ids, spec.block_size)
        found += [PieceGroup(shared, responses)] if share_prompt else [PieceGroup(shared, [r]) for r in responses]
    return found
