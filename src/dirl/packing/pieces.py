"""Pieces: the tokens of prompts, responses and conversations, clean blocks first, then the noised views of blocks.

Prompt and responses are kept apart; `dirl.packing.rows` joins them to rows, and may split a response.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from dirl.batches import IGNORE
from dirl.diffusion.noise import NoiseConfig, noise
from dirl.diffusion.views import Views
from dirl.types import ModelSpec

SHARED = -1
"""`trajectory_ids` of a prompt, which belongs to all responses behind it."""


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, up to the end token of its last trained assistant message."""

    input_ids: Sequence[int] | Int[np.ndarray, " T"]
    loss_mask: Sequence[bool] | Bool[np.ndarray, " T"]
    """True for the assistant's tokens: its messages, each with its end token."""
    complete: bool = True
    """False after a cut: the last token is not the end of anything."""


@dataclass(frozen=True)
class Piece:
    """Tokens of one prompt, response or conversation, or of a part of it: [T] in numpy.

    The fields are those of `PackedBatch`; group and branch are given when pieces are joined to a row.
    """

    input_ids: Int64[np.ndarray, " T"]
    position_ids: Int64[np.ndarray, " T"]
    block_ids: Int64[np.ndarray, " T"]
    view_ids: Int64[np.ndarray, " T"]
    target_ids: Int64[np.ndarray, " T"]
    loss_weights: Float[np.ndarray, " T"]
    trajectory_ids: Int64[np.ndarray, " T"]
    columns: Mapping[str, Float[np.ndarray, " T"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: slice | np.ndarray) -> "Piece":
        own = {name: value[index] for name, value in vars(self).items() if name != "columns"}
        return Piece(**own, columns={name: value[index] for name, value in self.columns.items()})

    @property
    def scored(self) -> int:
        """The number of tokens with a target."""
        return int((self.target_ids != IGNORE).sum())


class PieceGroup(NamedTuple):
    """Responses behind one prompt, which may be empty; a row has the prompt once for all that it holds of them."""

    prompt: Piece
    responses: Sequence[Piece]


def alone(piece: Piece) -> PieceGroup:
    """A piece that shares no prompt, such as a conversation."""
    return PieceGroup(piece[:0], [piece])


def conversation(
    encoded: Encoded, spec: ModelSpec, config: NoiseConfig, rng: np.random.Generator, number: int = 0
) -> tuple[Piece, int]:
    """One SFT example: its clean blocks, then the noised views of the blocks that hold response tokens.

    The last block is filled up with the end token, which is trained on if the token before it is; a cut
    conversation has no end to learn, so its last partial block is left out instead. Views that mask
    nothing, and the clean copy of the last block (nothing sees it), are left out too.

    Args:
        number: of the conversation in its optimizer step.

    Returns:
        the piece and the number of response tokens, the fill included.
    """
    size = spec.block_size
    ids, trained = whole_blocks(encoded, size, spec.stop_token_ids[0])
    blocks = np.flatnonzero(trained.any(1))
    masked, weights = noise(trained[blocks], config, rng)

    view, row = np.nonzero(masked.any(-1))
    order = np.lexsort((view, row))
    view, row = view[order], row[order]
    hit, shown = masked[view, row], ids[blocks[row]]
    noised = _piece(
        inputs=np.where(hit, spec.mask_token_id, shown),
        targets=np.where(hit, shown, IGNORE),
        blocks=blocks[row],
        views=view + 1,
        trajectory=number,
        weights=weights[view, row],
    )
    return concatenate([clean(ids[:-1], 0, number), noised]), int(trained.sum())


def whole_blocks(
    encoded: Encoded, size: int, end_token: int
) -> tuple[Int64[np.ndarray, "K B"], Bool[np.ndarray, "K B"]]:
    """Token ids and loss mask as [K, B]; see `conversation` for the last block."""
    ids, trained = list(encoded.input_ids), list(encoded.loss_mask)
    if encoded.complete:
        fill = -len(ids) % size
        ids, trained = ids + [end_token] * fill, trained + [trained[-1]] * fill
    whole = len(ids) // size * size
    shape = (-1, size)
    return np.array(ids[:whole], dtype=np.int64).reshape(shape), np.array(trained[:whole], dtype=bool).reshape(shape)


def prompt(prompt_ids: Sequence[int], block_size: int) -> Piece:
    """The whole blocks of a prompt; what is left of it shares a block with the response and belongs to that."""
    ids = np.array(prompt_ids, dtype=np.int64)
    return clean(ids[: len(ids) // block_size * block_size].reshape(-1, block_size), 0, SHARED)


def response(
    views: Views, weights: float | Float[np.ndarray, "V B"], columns: Mapping[str, float | Sequence[float]], number: int
) -> Piece:
    """A response's views, and the clean blocks before the last of them: nothing sees the others.

    Args:
        weights: loss weight of the scored tokens: one for all, or [V, B].
        columns: by name, one value for all positions of the views, or one for each of `response_ids`, which the scored
            tokens have.
        number: of the trajectory in its optimizer step.
    """
    own = {name: _column(value, views) for name, value in columns.items()}
    noised = _piece(
        inputs=views.inputs,
        targets=views.targets,
        blocks=views.first_block + views.view_block,
        views=views.view_number,
        trajectory=number,
        weights=np.where(views.targets == IGNORE, 0.0, weights),
        columns=own,
    )
    seen = views.blocks[: views.view_block.max(initial=0)]
    return concatenate([clean(seen, views.first_block, number), noised])


def clean(blocks: Int[np.ndarray, "K B"], first_block: int, trajectory: int) -> Piece:
    """Clean tokens [K, B] of consecutive blocks."""
    none = np.full(blocks.shape, IGNORE, dtype=np.int64)
    index, views = first_block + np.arange(len(blocks)), np.zeros(len(blocks), dtype=np.int64)
    return _piece(blocks, none, index, views, trajectory, np.zeros(blocks.shape))


def concatenate(pieces: Sequence[Piece]) -> Piece:
    """One after another. A column that some of them lack is 0 there."""
    names = [name for name in vars(pieces[0]) if name != "columns"]
    own = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names}
    columns = dict.fromkeys(name for piece in pieces for name in piece.columns)
    return Piece(**own, columns={name: _joined(name, pieces) for name in columns})


def _joined(name: str, pieces: Sequence[Piece]) -> np.ndarray:
    return np.concatenate([p.columns.get(name, np.zeros(len(p), dtype=np.float32)) for p in pieces])


def _column(value: float | Sequence[float], views: Views) -> np.ndarray:
    """One number for all positions, or one for each of the response, as [V, B]."""
    if isinstance(value, float | int):
        return np.full(views.inputs.shape, value)
    return np.array((*value, 0.0), dtype=np.float32)[views.response_index]  # index -1: not scored


def _piece(
    inputs: np.ndarray,
    targets: np.ndarray,
    blocks: np.ndarray,
    views: np.ndarray,
    trajectory: int,
    weights: np.ndarray,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Piece:
    """Rows [V, B] of one block each, flattened."""
    size = inputs.shape[1]
    return Piece(
        input_ids=inputs.astype(np.int64).ravel(),
        position_ids=(blocks[:, None] * size + np.arange(size)).astype(np.int64).ravel(),
        block_ids=np.repeat(blocks, size).astype(np.int64),
        view_ids=np.repeat(views, size).astype(np.int64),
        target_ids=targets.astype(np.int64).ravel(),
        loss_weights=weights.astype(np.float32).ravel(),
        trajectory_ids=np.full(inputs.size, trajectory, dtype=np.int64),
        columns={name: value.astype(np.float32).ravel() for name, value in (columns or {}).items()},
    )
