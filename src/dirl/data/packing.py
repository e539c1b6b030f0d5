"""Packing: conversations and trajectories become flat rows of tokens, filled to a budget.

A `Segment` holds the tokens of sequences that may see one another (one conversation, or the responses to
one prompt behind a single copy of it). `pack` joins segments to `PackedBatch`es; nothing is padded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dirl.data.chat import Encoded
from dirl.diffusion.noise import NoiseConfig, noise
from dirl.diffusion.replay import Replay, replay
from dirl.types import IGNORE, ModelSpec, PackedBatch, Trajectory


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
    clean = _clean(ids[:-1], 0, branch=0)
    hit, shown = masked[view, row], ids[blocks[row]]
    noised = _views(
        inputs=np.where(hit, spec.mask_token_id, shown),
        targets=np.where(hit, shown, IGNORE),
        blocks=blocks[row],
        views=view + 1,
        branch=0,
        loss_weights=weights[view, row],
    )
    return _concatenate([clean, noised]), int(trained.sum())


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
    trajectories: Sequence[Trajectory], spec: ModelSpec, weights: Sequence[float], token_budget: int, share_prompt: bool
) -> list[Segment]:
    """The trajectories of one prompt, behind one copy of it as long as they fit into the budget.

    Args:
        weights: loss weight of every scored token of each trajectory.
        share_prompt: False gives every trajectory its own copy of the prompt.
    """
    size = spec.block_size
    prompt_ids = np.array(trajectories[0].prompt_ids, dtype=np.int64)
    prompt = _clean(prompt_ids[: len(prompt_ids) // size * size].reshape(-1, size), 0, branch=0)
    bodies = [(t, replay(t, size, spec.mask_token_id), weight) for t, weight in zip(trajectories, weights, strict=True)]
    chunks: list[list[Segment]] = []
    room = 0
    for trajectory, views, weight in bodies:
        length = views.inputs.size + views.blocks[:-1].size
        if not chunks or not share_prompt or length > room:
            chunks.append([prompt])
            room = token_budget - len(prompt)
        chunks[-1].append(_response(trajectory, views, weight, branch=len(chunks[-1])))
        room -= length
    return [_concatenate(chunk) for chunk in chunks]


def pack(segments: Iterable[Segment], token_budget: int) -> list[PackedBatch]:
    """Fill rows of at most `token_budget` tokens, longest segment first, each into the fullest row it fits.

    A segment longer than the budget gets a row of its own; one without tokens is in no row.
    """
    rows: list[list[Segment]] = []
    room: list[int] = []
    for segment in sorted(filter(len, segments), key=len, reverse=True):
        fits = [i for i, left in enumerate(room) if left >= len(segment)]
        if fits:
            best = min(fits, key=room.__getitem__)
        else:
            best = len(rows)
            rows.append([])
            room.append(token_budget)
        rows[best].append(segment)
        room[best] -= len(segment)
    return [join(row) for row in rows]


def join(segments: Sequence[Segment]) -> PackedBatch:
    """One flat row; every segment becomes a group of its own."""
    merged = _concatenate(segments)
    groups = np.repeat(np.arange(len(segments)), [len(s) for s in segments])
    tensors = {name: torch.from_numpy(value) for name, value in vars(merged).items()}
    unknown = torch.full((len(merged),), float("nan"))
    return PackedBatch(
        **tensors, group_ids=torch.from_numpy(groups), old_logprobs=unknown, reference_logprobs=unknown.clone()
    )


def empty_batch(spec: ModelSpec) -> PackedBatch:
    """One block without targets: what a rank computes when the others have more micro-batches."""
    ids = np.full((1, spec.block_size), spec.pad_token_id, dtype=np.int64)
    return join([_clean(ids, 0, branch=0)])


def _response(trajectory: Trajectory, views: Replay, weight: float, branch: int) -> Segment:
    clean = _clean(views.blocks[:-1], views.first_block, branch)
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
    return _concatenate([clean, noised])


def _clean(blocks: np.ndarray, first_block: int, branch: int) -> Segment:
    """Clean tokens [K, B] of consecutive blocks."""
    none = np.full(blocks.shape, IGNORE, dtype=np.int64)
    index = first_block + np.arange(len(blocks))
    return _views(blocks, none, index, np.zeros(len(blocks), dtype=np.int64), branch, np.zeros(blocks.shape))


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


def _concatenate(segments: Sequence[Segment]) -> Segment:
    return Segment(**{name: np.concatenate([getattr(s, name) for s in segments]) for name in Segment.__annotations__})
