"""One policy update as other systems lay it out, beside ours: trajectories in, the batches of all forwards out.

Written from the papers' descriptions. All layouts score every token at the denoising step that committed it, so all
have the same gradient; they differ in how often they compute the context of a token, and in padding. Where a
description leaves room, the baseline gets the cheaper reading: the head meets scored positions only, padding sees
nothing but its own block, and no row is computed for a step that scores nothing in it, except where said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dirl.batches import IGNORE, PackedBatch
from dirl.objectives import DiPO
from dirl.packing.pieces import Piece, alone, concatenate
from dirl.packing.rows import Branch, join, pack
from dirl.rl.steps import step_batch
from dirl.types import ModelSpec, Trajectory

Groups = Sequence[Sequence[Trajectory]]


@dataclass(frozen=True)
class Limits:
    """What rows are padded or filled to, in tokens."""

    prompt: int = 1024
    response: int = 8192
    token_budget: int = 16384


def dirl_batches(groups: Groups, spec: ModelSpec, limits: Limits) -> list[PackedBatch]:
    """DiRL as released (arXiv:2512.22234): B forwards of each row, one a denoising step, whether it has so many.

    A row is a clean and a noised copy of prompt and response, padded to the largest prompt and response allowed.
    """
    length = limits.prompt + limits.response
    batches = []
    for row in _rows(groups, spec):
        if len(row.ids) > length:
            raise ValueError(f"a row has {len(row.ids)} tokens, over the limits of {length}: raise them")
        for step in range(1, spec.block_size + 1):
            noised = row.noised(step, 0)
            batches.append(_padded([row.clean(len(row.ids)), noised], 2 * length, spec))
    return batches


def tracerl_batches(groups: Groups, spec: ModelSpec, limits: Limits) -> list[PackedBatch]:
    """TraceRL (arXiv:2509.06949): per step index a forward of prompt, clean and noised response of every row.

    Rows are padded to the longest of the batch; those without a step of this index are left out.
    """
    rows = _rows(groups, spec)
    length = max(len(row.ids) + len(row.ids) - row.start for row in rows)
    return [
        _padded([row.clean(len(row.ids)), row.noised(step, row.start)], length, spec)
        for step in range(1, max(row.last_step for row in rows) + 1)
        for row in rows
        if step <= row.last_step
    ]


def per_step_batches(groups: Groups, spec: ModelSpec, limits: Limits) -> list[PackedBatch]:
    """An ideal of one forward per step index: nothing padded, no block without a token to score, rows packed.

    The clean copy ends before the last noised block, for nothing sees the rest.
    """
    rows = _rows(groups, spec)
    batches = []
    for step in range(1, max(row.last_step for row in rows) + 1):
        pieces = [alone(concatenate(row.scored_blocks(step))) for row in rows if step <= row.last_step]
        batches += pack(pieces, limits.token_budget)
    return batches


def one_forward_batches(groups: Groups, spec: ModelSpec, limits: Limits) -> list[PackedBatch]:
    """Ours: every token that some step needs, once; the responses to a prompt share it."""
    return step_batch([list(g) for g in groups], spec, DiPO(), limits.response, limits.token_budget).micro_batches


LAYOUTS: dict[str, Callable[[Groups, ModelSpec, Limits], list[PackedBatch]]] = {
    "dirl": dirl_batches,
    "tracerl": tracerl_batches,
    "per_step": per_step_batches,
    "one_forward": one_forward_batches,
}


@dataclass(frozen=True)
class _Row:
    """Prompt and response of one trajectory, position by position."""

    ids: np.ndarray
    steps: np.ndarray
    """[L] denoising step that committed each token, 0 in the prompt."""
    logprobs: np.ndarray
    start: int
    """First position of the block that the response begins in."""
    advantage: float
    spec: ModelSpec

    @property
    def last_step(self) -> int:
        return int(self.steps.max())

    def clean(self, end: int) -> Piece:
        """Positions 0..end-1 as they were in the end."""
        return self._piece(np.arange(end), np.zeros(end, dtype=bool), np.zeros(end, dtype=bool), view=0)

    def noised(self, step: int, begin: int) -> Piece:
        """Positions from `begin` on as the model saw them before `step`."""
        at = np.arange(begin, len(self.ids))
        return self._piece(at, self.steps[at] >= step, self.steps[at] == step, view=1)

    def scored_blocks(self, step: int) -> list[Piece]:
        """The noised blocks in which `step` committed something, and the clean tokens that they see."""
        size = self.spec.block_size
        hit = (self.steps == step).reshape(-1, size).any(1)
        at = np.flatnonzero(np.repeat(hit, size))
        noised = self._piece(at, self.steps[at] >= step, self.steps[at] == step, view=1)
        return [self.clean(int(np.flatnonzero(hit)[-1]) * size), noised]

    def _piece(self, at: np.ndarray, masked: np.ndarray, scored: np.ndarray, view: int) -> Piece:
        return Piece(
            input_ids=np.where(masked, self.spec.mask_token_id, self.ids[at]),
            position_ids=at,
            block_ids=at // self.spec.block_size,
            view_ids=np.full_like(at, view),
            target_ids=np.where(scored, self.ids[at], IGNORE),
            loss_weights=scored.astype(np.float32),
            trajectory_ids=np.zeros_like(at),
            columns={
                "advantages": np.full(len(at), self.advantage, dtype=np.float32),
                "behaviour_logprobs": np.where(scored, self.logprobs[at], 0).astype(np.float32),
            },
        )


def _rows(groups: Groups, spec: ModelSpec) -> list[_Row]:
    rows = []
    for trajectory in (t for group in groups for t in group):
        prompt = len(trajectory.prompt_ids)
        rows.append(
            _Row(
                ids=np.array(trajectory.prompt_ids + trajectory.response_ids, dtype=np.int64),
                steps=np.array((0,) * prompt + trajectory.step_map, dtype=np.int64),
                logprobs=np.array((0.0,) * prompt + trajectory.behaviour_logprobs),
                start=prompt // spec.block_size * spec.block_size,
                advantage=trajectory.advantage,
                spec=spec,
            )
        )
    return rows


def _padded(parts: list[Piece], length: int, spec: ModelSpec) -> PackedBatch:
    """One row filled up to `length` with blocks of padding that see nothing but themselves."""
    count = length - sum(len(part) for part in parts)
    zero = np.zeros(count, dtype=np.int64)
    padding = Piece(
        input_ids=zero + spec.pad_token_id,
        position_ids=np.arange(count),
        block_ids=np.arange(count) // spec.block_size,
        view_ids=zero + 1,
        target_ids=zero + IGNORE,
        loss_weights=zero.astype(np.float32),
        trajectory_ids=zero,
    )
    return join([[Branch(1, piece)] for piece in ([concatenate(parts), padding] if count else [concatenate(parts)])])
