"""Trajectories and conversations as pieces to be packed, with weights that a test chooses."""

from collections.abc import Sequence

from dirl.batches import PackedBatch
from dirl.diffusion.views import step_views
from dirl.packing.pieces import PieceGroup, prompt, response
from dirl.packing.rows import pack
from dirl.types import ModelSpec, Trajectory


def group_pieces(
    trajectories: Sequence[Trajectory],
    spec: ModelSpec,
    weights: Sequence[float] | None = None,
    share_prompt: bool = True,
    first: int = 0,
) -> list[PieceGroup]:
    """The trajectories of one prompt with a view a denoising step.

    Args:
        weights: of the scored tokens of each trajectory; None: 1.
        first: number of the first trajectory.
    """
    shared = prompt(trajectories[0].prompt_ids, spec.block_size)
    responses = [
        response(
            step_views(t, spec.block_size, spec.mask_token_id),
            1.0 if weights is None else weights[index],
            {"advantages": t.advantage or 0.0, "behaviour_logprobs": t.behaviour_logprobs},
            first + index,
        )
        for index, t in enumerate(trajectories)
    ]
    return [PieceGroup(shared, responses)] if share_prompt else [PieceGroup(shared, [r]) for r in responses]


def one_row(group: PieceGroup) -> PackedBatch:
    """All of the group in one row."""
    (row,) = pack([group], 10**9)
    return row
