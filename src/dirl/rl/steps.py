"""Groups of trajectories cut into optimizer steps, each packed and normalised as a whole."""

import itertools
from collections.abc import Sequence

import numpy as np

from dirl.batches import StepBatch
from dirl.objectives import Objective
from dirl.packing.pieces import Piece, PieceGroup, prompt, response
from dirl.packing.rows import pack
from dirl.seeds import derived_seed
from dirl.types import ModelSpec, Trajectory


def cut_steps(groups: Sequence[list[Trajectory]], count: int) -> list[list[list[Trajectory]]]:
    """`count` runs of consecutive groups whose sizes differ by at most one; some are empty if groups are few."""
    bounds = [round(i * len(groups) / count) for i in range(count + 1)]
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
    """What the objective makes of the groups of one optimizer step, packed.

    Args:
        share_prompt: False gives every trajectory a copy of the prompt of its own.
        seed: of views that are drawn, with the trajectory's prompt and number.
    """
    pieces = piece_groups(groups, spec, objective, share_prompt, seed)
    scored = sum(response.scored for group in pieces for response in group.responses)
    trajectories = sum(len(group) for group in groups)
    divisor = objective.divisor(trajectories, scored, max_response_tokens)
    return StepBatch(pack(pieces, token_budget), divisor, trajectories, token_budget)


def piece_groups(
    groups: Sequence[Sequence[Trajectory]],
    spec: ModelSpec,
    objective: Objective,
    share_prompt: bool = True,
    seed: tuple[int, ...] = (0,),
) -> list[PieceGroup]:
    """The responses of each group behind their prompt; see `step_batch`."""
    found: list[PieceGroup] = []
    numbers = itertools.count()
    for group in groups:
        responses = [response_piece(t, spec, objective, next(numbers), seed) for t in group]
        shared = prompt(group[0].prompt_ids, spec.block_size)
        found += [PieceGroup(shared, responses)] if share_prompt else [PieceGroup(shared, [r]) for r in responses]
    return found


def response_piece(
    trajectory: Trajectory, spec: ModelSpec, objective: Objective, number: int = 0, seed: tuple[int, ...] = (0,)
) -> Piece:
    """The clean blocks of a response and the views that the objective takes of it.

    Args:
        number: of the trajectory in its optimizer step.
    """
    rng = np.random.default_rng(derived_seed("views", *seed, *trajectory.key))
    views = objective.views(trajectory, spec, rng)
    return response(views, objective.weights(trajectory, views), objective.columns(trajectory), number)
