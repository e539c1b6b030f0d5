"""Packing: conversations and trajectories become flat rows of tokens, filled to a budget.

A `Segment` holds the tokens of sequences that may see one another (one conversation, or the responses to
one prompt behind a single copy of it). `pack` joins segments to `PackedBatch`es, and spreads the responses of a
segment over several where that fills them; nothing is padded.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dirl.data.chat import Encoded
from dirl.data.filling import fill_rows
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
    """The trajectories of one prompt as one segment, behind one copy of it.

    Args:
        weights: loss weight of every scored token of each trajectory.
        token_budget: of no effect, as `pack` divides groups.
        share_prompt: False gives every trajectory a segment, and so a copy of the prompt, of its own.
    """
    size = spec.block_size
    prompt_ids = np.array(trajectories[0].prompt_ids, dtype=np.int64)
    prompt = _clean(prompt_ids[: len(prompt_ids) // size * size].reshape(-1, size), 0, branch=0)
    responses = [
        _response(trajectory, replay(trajectory, size, spec.mask_token_id), weight, branch if share_prompt else 1)
        for branch, (trajectory, weight) in enumerate(zip(trajectories, weights, strict=True), 1)
    ]
    if not share_prompt:
        return [_concatenate([prompt, response]) for response in responses]
    return [_concatenate([prompt, *responses])]


def pack(segments: Iterable[Segment], token_budget: int) -> list[PackedBatch]:
    """Fill rows of at most `token_budget` tokens; see `dirl.data.filling`.

    Responses of one segment that come to lie in different rows get a copy of the prompt in each. What exceeds the
    budget, a segment or a response with its prompt, gets a row of its own; a segment without tokens is in no row.
    """
    divided = [_divided(segment) for segment in segments if len(segment)]
    groups = [(prompt, responses) for prompt, responses in divided if len(responses) > 1]
    # All that cannot be divided is as one group without a prompt.
    whole = [_concatenate([prompt, *responses]) for prompt, responses in divided if len(responses) <= 1]
    lengths = [(len(prompt), [len(r) for r in responses]) for prompt, responses in groups]
    rows = []
    for row in fill_rows([*lengths, (0, [len(segment) for segment in whole])], token_budget):
        joined: list[Segment] = []
        for number, chosen in row:
            if number == len(groups):
                joined += [whole[i] for i in chosen]
            else:
                prompt, responses = groups[number]
                joined.append(_concatenate([prompt, *(responses[i] for i in chosen)]))
        rows.append(join(joined))
    return rows


def fill_rate(batches: Sequence[PackedBatch], token_budget: int) -> float:
    """Tokens over the room for them, in 0..1. A row over the budget is full; without rows it is 0."""
    room = sum(max(len(batch), token_budget) for batch in batches)
    return sum(len(batch) for batch in batches) / room if room else 0.0


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


def _divided(segment: Segment) -> tuple[Segment, list[Segment]]:
    """The prompt (branch 0) and the responses (each other branch); both are stretches of the segment."""
    starts = np.flatnonzero(np.diff(segment.branch_ids, prepend=-1)).tolist()
    parts = [_slice(segment, a, b) for a, b in itertools.pairwise([*starts, len(segment)])]
    prompt = parts.pop(0) if segment.branch_ids[0] == 0 else _slice(segment, 0, 0)
    return prompt, parts


def _slice(segment: Segment, start: int, end: int) -> Segment:
    return Segment(**{name: value[start:end] for name, value in vars(segment).items()})


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
