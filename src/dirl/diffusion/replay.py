"""Replay of a step map: for each denoising step, what the model saw and which tokens it committed.

For block k with s steps there are s views; view v shows the tokens committed before step v and masks the
rest, and the tokens committed at v are its targets (DiRL, arXiv:2512.22234, section 3).
"""

from dataclasses import dataclass

import numpy as np

from dirl.types import IGNORE, Trajectory


@dataclass(frozen=True)
class Replay:
    """Views of one trajectory, one row a denoising step, in order of (block, step)."""

    first_block: int
    """Absolute index of the block that holds the first response token."""
    blocks: np.ndarray
    """[K, B] the finished tokens of each block, the prompt's tail in the first one included."""
    view_block: np.ndarray
    """[V] row of `blocks` that each view shows."""
    view_step: np.ndarray
    """[V] 1 for the first forward of a block, 2 for the second, ..."""
    inputs: np.ndarray
    """[V, B] what the model saw: committed tokens, the mask token elsewhere."""
    targets: np.ndarray
    """[V, B] the token committed at this step, IGNORE elsewhere."""
    response_index: np.ndarray
    """[V, B] index into `response_ids` of each target, -1 elsewhere."""


def replay(trajectory: Trajectory, block_size: int, mask_token_id: int) -> Replay:
    """All views of a trajectory. Raises ValueError if a step of the map commits nothing."""
    head = len(trajectory.prompt_ids) % block_size
    first = len(trajectory.prompt_ids) // block_size
    tail = trajectory.prompt_ids[len(trajectory.prompt_ids) - head :]
    blocks = np.array(tail + trajectory.response_ids, dtype=np.int64).reshape(-1, block_size)
    steps = np.array((0,) * head + trajectory.step_map, dtype=np.int64).reshape(-1, block_size)
    index = np.arange(-head, len(trajectory.response_ids)).reshape(-1, block_size)

    per_block = steps.max(1)
    view_block = np.repeat(np.arange(len(blocks)), per_block)
    view_step = np.arange(len(view_block)) - np.repeat(per_block.cumsum() - per_block, per_block) + 1
    committed = steps[view_block] == view_step[:, None]
    if not committed.any(1).all():
        bad = int(np.flatnonzero(~committed.any(1))[0])
        raise ValueError(
            f"trajectory {trajectory.prompt_id}#{trajectory.sample_index}: step {view_step[bad]} of block "
            f"{first + view_block[bad]} commits no token; its step_map is damaged or of another block size"
        )
    seen = steps[view_block] < view_step[:, None]
    return Replay(
        first_block=first,
        blocks=blocks,
        view_block=view_block,
        view_step=view_step,
        inputs=np.where(seen, blocks[view_block], mask_token_id),
        targets=np.where(committed, blocks[view_block], IGNORE),
        response_index=np.where(committed, index[view_block], -1),
    )
