"""Views of a trajectory: copies of its blocks, each with some positions masked and some of them scored.

`step_views` are those of a step map, what the model saw at each denoising step and which tokens it committed: for
block k with s steps there are s views; view v shows the tokens committed before step v and masks the rest, and the
tokens committed at v are its targets (DiRL, arXiv:2512.22234, section 3). `merged` has several of them in one.

`full_views` and `complementary_views` ask no step map: they mask all of a block, or a random part of it and then the
rest, and score all that they mask. The prompt's tail in the first block is visible in every view.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

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
    """[V] 1 for the first view of a block, 2 for the second, ...; there may be gaps."""
    inputs: Int[np.ndarray, "V B"]
    """[V, B] what the model sees: tokens, and the mask token where they are hidden."""
    targets: Int[np.ndarray, "V B"]
    """[V, B] the token to score, IGNORE elsewhere."""
    response_index: Int[np.ndarray, "V B"]
    """[V, B] index into `response_ids` of each target, -1 elsewhere."""
    weights: Float[np.ndarray, "V B"] | None = None
    """[V, B] of the targets in the estimate of a likelihood bound, where views are drawn for one; None elsewhere."""

    def __len__(self) -> int:
        return len(self.view_block)

    def __getitem__(self, index: slice | Bool[np.ndarray, " V"] | Int[np.ndarray, " chosen"]) -> "Views":
        """Some of the views, e.g. by a mask [V]."""
        own = ("view_block", "view_number", "inputs", "targets", "response_index")
        weights = None if self.weights is None else self.weights[index]
        return replace(self, weights=weights, **{name: getattr(self, name)[index] for name in own})


def step_views(trajectory: Trajectory, block_size: int, mask_token_id: int) -> Views:
    """One view a denoising step. Raises ValueError if a step of the map commits nothing."""
    first, blocks, index = in_blocks(trajectory, block_size)
    steps = np.array((*trajectory.step_map, 0), dtype=np.int64)[np.maximum(index, -1)]  # the prompt's tail has step 0

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


def merged(views: Views, shrink: int) -> Views:
    """Step views, of which `shrink` neighbours of a block are one: the first one's inputs, the targets of all."""
    starts = np.flatnonzero((views.view_number - 1) % shrink == 0)
    return replace(
        views[starts],
        view_number=(views.view_number[starts] - 1) // shrink + 1,
        targets=np.maximum.reduceat(views.targets, starts),  # IGNORE and -1 are below all that is scored
        response_index=np.maximum.reduceat(views.response_index, starts),
    )


def full_views(trajectory: Trajectory, block_size: int, mask_token_id: int) -> Views:
    """One view a block, all of it masked."""
    _, _, index = in_blocks(trajectory, block_size)
    return masked_views(trajectory, block_size, mask_token_id, np.ones((len(index), 1, block_size), dtype=bool))


def complementary_views(
    trajectory: Trajectory,
    block_size: int,
    mask_token_id: int,
    rng: np.random.Generator,
    rates: tuple[float, float],
    pairs: int = 1,
) -> Views:
    """Pairs of views of each block: what one of them masks is visible in the other, so a pair scores each token once.

    A view that would mask nothing is left out; its other one masks all.

    Args:
        rates: for each pair of each block, the first one masks each position with a probability drawn between these.
    """
    _, _, index = in_blocks(trajectory, block_size)
    shape = (len(index), pairs, 1)
    first = rng.random((len(index), pairs, block_size)) < rng.uniform(*rates, size=shape)
    both = np.stack([first, ~first], axis=2)  # [K, pairs, 2, B]
    return masked_views(trajectory, block_size, mask_token_id, both.reshape(len(index), 2 * pairs, block_size))


def masked_views(
    trajectory: Trajectory,
    block_size: int,
    mask_token_id: int,
    masked: Bool[np.ndarray, "K n B"],
    weights: Float[np.ndarray, "K n B"] | None = None,
) -> Views:
    """n views of each block by `masked` [K, n, B], less the prompt's tail; those that mask nothing are left out.

    Args:
        weights: [K, n, B] of `Views.weights`.
    """
    first, blocks, index = in_blocks(trajectory, block_size)
    masked = masked & (index >= 0)[:, None]
    view_block, number = np.nonzero(masked.any(-1))
    hidden, shown = masked[view_block, number], blocks[view_block]
    return Views(
        first_block=first,
        blocks=blocks,
        view_block=view_block,
        view_number=number + 1,
        inputs=np.where(hidden, mask_token_id, shown),
        targets=np.where(hidden, shown, IGNORE),
        response_index=np.where(hidden, index[view_block], -1),
        weights=None if weights is None else np.where(hidden, weights[view_block, number], 0.0),
    )


def in_blocks(trajectory: Trajectory, block_size: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Index of the response's first block, its blocks' tokens [K, B], and their index in the response, else < 0."""
    head = len(trajectory.prompt_ids) % block_size
    tail = trajectory.prompt_ids[len(trajectory.prompt_ids) - head :]
    blocks = np.array(tail + trajectory.response_ids, dtype=np.int64).reshape(-1, block_size)
    index = np.arange(-head, len(trajectory.response_ids)).reshape(-1, block_size)
    return len(trajectory.prompt_ids) // block_size, blocks, index
