"""Views of a trajectory: copies of its blocks, each with some positions masked and some of them scored.

`step_views` are those of a step map, what the model saw at each denoising step and which tokens it committed: for
block k with s steps there are s views; view v shows the tokens committed before step v and masks the rest, and the
tokens committed at v are its targets (DiRL, arXiv:2512.22234, section 3).
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from dirl.batches import IGNORE
from dirl.types import Trajectory


@dataclass(frozen=True)
class Views:
    """V views of one trajectory, one row each, in order of (block, number)."""

    first_block: int
    """Absolute index of the block that holds the first response token."""
    blocks: Int[np.ndarray, "K B"]
    """[K, B] the finished tokens of each block, the prompt's tail in the first one included."""
    view_block: Int[np.ndarray, " V"]
    """[V] row of `blocks` that each view shows."""
    view_number: Int[np.ndarray, " V"]
    """[V] 1 for the first view of a block, 2 for the second, ..."""
    inputs: Int[np.ndarray, "V B"]
    """[V, B] what the model sees: tokens, and the mask token where they are hidden."""
    targets: Int[np.ndarray, "V B"]
    """[V, B] the token to score, IGNORE elsewhere."""
    response_index: Int[np.ndarray, "V B"]
    """[V, B] index into `response_ids` of each target, -1 elsewhere."""

    def __len__(self) -> int:
        return len(self.view_block)

    def __getitem__(self, index: slice | Bool[np.ndarray, " V"] | Int[np.ndarray, " chosen"]) -> "Views":
        """Some of the views, e.g. by a mask [V]."""
        own = ("view_block", "view_number", "inputs", "targets", "response_index")
        return replace(self, **{name: getattr(self, name)[index] for name in own})


def step_views(trajectory: Trajectory, block_size: int, mask_token_id: int) -> Views:
    """One view a denoising step. Raises ValueError if a step of the map commits nothing."""
    head = len(trajectory.prompt_ids) % block_size
    first = len(trajectory.prompt_ids) // block_size
    tail = trajectory.prompt_ids[len(trajectory.prompt_ids) - head :]
    blocks = np.array(tail + trajectory.response_ids, dtype=np.int64).reshape(-1, block_size)
    steps = np.array((0,) * head + trajectory.step_map, dtype=np.int64).reshape(-1, block_size)
    index = np.arange(-head, len(trajectory.response_ids)).reshape(-1, block_size)

    per_block = steps.max(1)
    view_block = np.repeat(np.arange(len(blocks)), per_block)
    view_number = np.arange(len(view_block)) - np.repeat(per_block.cumsum() - per_block, per_block) + 1
    committed = steps[view_block] == view_number[:, None]
    if not committed.any(1).all():
        bad = int(np.flatnonzero(~committed.any(1))[0])
        raise ValueError(
            f"trajectory {trajectory.prompt_id}#{trajectory.sample_index}: step {view_number[bad]} of block "
            f"{first + view_block[bad]} commits no token; its step_map is damaged or of another block size"
        )
    seen = steps[view_block] < view_number[:, None]
    return Views(
        first_block=first,
        blocks=blocks,
        view_block=view_block,
        view_number=view_number,
        inputs=np.where(seen, blocks[view_block], mask_token_id),
        targets=np.where(committed, blocks[view_block], IGNORE),
        response_index=np.where(committed, index[view_block], -1),
    )
