"""Segments: the tokens of conversations and trajectories, clean blocks first, then the noised views of blocks.

A `Segment` holds the tokens of sequences that may see one another: one conversation, or the responses to one prompt
behind a single copy of it. `dirl.packing.rows` joins segments to rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dirl.diffusion.noise import NoiseConfig, noise
from dirl.diffusion.replay import Replay, replay
from dirl.types import IGNORE, ModelSpec, Trajectory


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, up to the end token of its last trained assistant message."""

    input_ids: Sequence[int]
    loss_mask: Sequence[bool]
    """True for the assistant's tokens: its messages, each with its end token."""
    complete: bool = True
    """False after a cut: the last token is not the end of anything."""


@dataclass(frozen=True)
class Segment:
    """Tokens of one group, in numpy; the fields are those of `PackedBatch`."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    branch_ids: np.ndarray
    block_ids: np.ndarray
    view_ids: np.ndarray
    target_ids: np.ndarray
    loss_weights: np.ndarray
    advantages: np.ndarray
    behaviour_logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


def conversation_segment(
    encoded: Encoded, spec: ModelSpec, config: NoiseConfig, rng: np.random.Generator
) -> tuple[Segment, int]:
    """One SFT example: its clean blocks, then the noised views of the blocks that hold response tokens.

    The last block is filled up with the end token, which is trained on if the token before it is; a cut
    conversation has no end to learn, so its last partial block is left out instead. Views that mask
    nothing, and the clean copy of the last block (nothing sees it), are left out too.

    Returns:
        the segment and the number of response tokens, the fill included.
    """
    size = spec.block_size
    ids, trained = whole_blocks(encoded, size, spec.stop_token_ids[0])
    blocks = np.flatnonzero(trained.any(1))
    masked, weights = noise(trained[blocks], config, rng)

    view, row = np.nonzero(masked.any(-1))
    order = np.lexsort((view, row))
    view, row = view[order], row[order]
    clean = clean_segment(ids[:-1], 0, branch=0)
    hit, shown = masked[view, row], ids[blocks[row]]
    noised = _views(
        inputs=np.where(hit, spec.mask_token_id, shown),
        targets=np.where(hit, shown, IGNORE),
        blocks=blocks[row],
        views=view + 1,
        branch=0,
        loss_weights=weights[view, row],
    )
    return concatenate([clean, noised]), int(trained.sum())


def whole_blocks(encoded: Encoded, size: int, end_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and loss mask as [K, B]; see `conversation_segment` for the last block."""
    ids, trained = list(encoded.input_ids), list(encoded.loss_mask)
    if encoded.complete:
        fill = -len(ids) % size
        ids, trained = ids + [end_token] * fill, trained + [trained[-1]] * fill
    whole = len(ids) // size * size
    shape = (-1, size)
    return np.array(ids[:whole], dtype=np.int64).reshape(shape), np.array(trained[:whole], dtype=bool).reshape(shape)


def group_segments(
    trajectories: Sequence[Trajectory], spec: ModelSpec, weights: Sequence[float], share_prompt: bool
) -> list[Segment]:
    """The trajectories of one prompt as one segment, behind one copy of it.

    Args:
        weights: loss weight of every scored token of each trajectory.
        share_prompt: False gives every trajectory a segment, and so a copy of the prompt, of its own.
    """
    size = spec.block_size
    prompt_ids = np.array(trajectories[0].prompt_ids, dtype=np.int64)
    prompt = clean_segment(prompt_ids[: len(prompt_ids) // size * size].reshape(-1, size), 0, branch=0)
    responses = [
        _response(trajectory, replay(trajectory, size, spec.mask_token_id), weight, branch if share_prompt else 1)
        for branch, (trajectory, weight) in enumerate(zip(trajectories, weights, strict=True), 1)
    ]
    if not share_prompt:
        return [concatenate([prompt, response]) for response in responses]
    return [concatenate([prompt, *responses])]


def clean_segment(blocks: np.ndarray, first_block: int, branch: int) -> Segment:
    """Clean tokens [K, B] of consecutive blocks."""
    none = np.full(blocks.shape, IGNORE, dtype=np.int64)
    index = first_block + np.arange(len(blocks))
    return _views(blocks, none, index, np.zeros(len(blocks), dtype=np.int64), branch, np.zeros(blocks.shape))


def concatenate(segments: Sequence[Segment]) -> Segment:
    return Segment(**{name: np.concatenate([getattr(s, name) for s in segments]) for name in Segment.__annotations__})


def _response(trajectory: Trajectory, views: Replay, weight: float, branch: int) -> Segment:
    clean = clean_segment(views.blocks[:-1], views.first_block, branch)
    logprobs = np.array((*trajectory.behaviour_logprobs, 0.0), dtype=np.float32)  # index -1: not scored
    advantage = 0.0 if trajectory.advantage is None else trajectory.advantage
    noised = _views(
        inputs=views.inputs,
        targets=views.targets,
        blocks=views.first_block + views.view_block,
        views=views.view_step,
        branch=branch,
        loss_weights=np.where(views.targets == IGNORE, 0.0, weight),
        behaviour_logprobs=logprobs[views.response_index],
        advantage=advantage,
    )
    return concatenate([clean, noised])


def _views(
    inputs: np.ndarray,
    targets: np.ndarray,
    blocks: np.ndarray,
    views: np.ndarray,
    branch: int,
    loss_weights: np.ndarray,
    behaviour_logprobs: np.ndarray | None = None,
    advantage: float = 0.0,
) -> Segment:
    """Rows [V, B] of one block each, flattened."""
    size = inputs.shape[1]
    logprobs = np.zeros(inputs.shape) if behaviour_logprobs is None else behaviour_logprobs
    return Segment(
        input_ids=inputs.astype(np.int64).ravel(),
        position_ids=(blocks[:, None] * size + np.arange(size)).astype(np.int64).ravel(),
        branch_ids=np.full(inputs.size, branch, dtype=np.int64),
        block_ids=np.repeat(blocks, size).astype(np.int64),
        view_ids=np.repeat(views, size).astype(np.int64),
        target_ids=targets.astype(np.int64).ravel(),
        loss_weights=loss_weights.astype(np.float32).ravel(),
        advantages=np.full(inputs.size, advantage, dtype=np.float32),
        behaviour_logprobs=logprobs.astype(np.float32).ravel(),
    )
