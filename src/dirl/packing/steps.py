"""Groups of trajectories cut into optimizer steps, each packed and normalised as a whole."""

import itertools
from collections.abc import Sequence

from dirl.losses.policy import Normalization
from dirl.packing.rows import pack
from dirl.packing.segments import group_segments
from dirl.types import IGNORE, ModelSpec, StepBatch, Trajectory


def cut_steps(groups: Sequence[list[Trajectory]], count: int) -> list[list[list[Trajectory]]]:
    """`count` runs of consecutive groups whose sizes differ by at most one; some are empty if groups are few."""
    bounds = [round(i * len(groups) / count) for i in range(count + 1)]
    return [list(groups[a:b]) for a, b in itertools.pairwise(bounds)]


def step_batch(
    groups: Sequence[list[Trajectory]],
    spec: ModelSpec,
    normalization: Normalization,
    max_response_tokens: int,
    token_budget: int,
    share_prompt: bool = True,
) -> StepBatch:
    """Pack the groups of one optimizer step; see `PolicyLossConfig.normalization` for weights and divisor."""
    segments = []
    for group in groups:
        weights = [1 / len(t.response_ids) if normalization == "sequence" else 1.0 for t in group]
        segments += group_segments(group, spec, weights, share_prompt)
    batches = pack(segments, token_budget)
    trajectories = sum(len(group) for group in groups)
    if normalization == "token":
        divisor = float(sum(int((b.target_ids != IGNORE).sum()) for b in batches))
    elif normalization == "sequence":
        divisor = float(trajectories)
    else:
        divisor = float(trajectories * max_response_tokens)
    return StepBatch(batches, divisor, trajectories)
