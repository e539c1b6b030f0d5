"""Packing: pieces become flat rows of tokens, filled to a budget; nothing is padded.

`pack` spreads the responses to one prompt over several rows where that fills them, and the views of a response where it
exceeds the budget.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dirl.batches import PackedBatch
from dirl.packing.bin_packing import bin_pack
from dirl.packing.pieces import Piece, PieceGroup, clean, concatenate
from dirl.packing.splitting import split_piece
from dirl.types import ModelSpec


class Branch(NamedTuple):
    """A piece in a row, with its `branch_ids`: 0 for a prompt."""

    number: int
    piece: Piece


def pack(groups: Iterable[PieceGroup], token_budget: int) -> list[PackedBatch]:
    """Fill rows of at most `token_budget` tokens; see `dirl.packing.bin_packing` and `dirl.packing.splitting`.

    Responses of one group that come to lie in different rows get a copy of the prompt in each, and parts of a
    response a copy of the clean blocks before them. A row exceeds the budget only where one view with all that it
    attends to does; a group without responses is in no row.
    """
    shared: list[tuple[Piece, list[Piece]]] = []
    alone: list[list[Branch]] = []  # all that shares no prompt is as one group without a prompt
    for prompt, responses in groups:
        parts = [part for response in responses for part in split_piece(response, token_budget, len(prompt))]
        if len(responses) > 1:
            shared.append((prompt, parts))
        else:
            alone += [_behind(prompt, [Branch(1, part)]) for part in parts if len(part)]
    lengths = [(len(prompt), [len(part) for part in parts]) for prompt, parts in shared]
    rows = []
    for row in bin_pack([*lengths, (0, [_tokens(branches) for branches in alone])], token_budget):
        joined: list[list[Branch]] = []
        for number, chosen in row:
            if number == len(shared):
                joined += [alone[i] for i in chosen]
            else:
                prompt, parts = shared[number]
                joined.append(_behind(prompt, [Branch(i + 1, parts[i]) for i in chosen]))
        rows.append(join(joined))
    return rows


def fill_rate(batches: Sequence[PackedBatch], token_budget: int) -> float:
    """Tokens over the room for them, in 0..1. A row over the budget is full; without rows it is 0."""
    room = sum(max(len(batch), token_budget) for batch in batches)
    return sum(len(batch) for batch in batches) / room if room else 0.0


def join(groups: Sequence[Sequence[Branch]]) -> PackedBatch:
    """One flat row; what stands together sees one another, as far as their branches do."""
    branches = [branch for group in groups for branch in group]
    merged = concatenate([branch.piece for branch in branches])
    sizes = [len(branch.piece) for branch in branches]
    own = {name: torch.from_numpy(value) for name, value in vars(merged).items() if name != "columns"}
    return PackedBatch(
        **own,
        group_ids=torch.from_numpy(np.repeat(np.arange(len(groups)), [_tokens(group) for group in groups])),
        branch_ids=torch.from_numpy(np.repeat([branch.number for branch in branches], sizes)),
        columns={name: torch.from_numpy(value) for name, value in merged.columns.items()},
    )


def empty_batch(spec: ModelSpec) -> PackedBatch:
    """One block without targets: what a rank computes when the others have more micro-batches."""
    ids = np.full((1, spec.block_size), spec.pad_token_id, dtype=np.int64)
    return join([[Branch(1, clean(ids, 0, trajectory=0))]])


def _behind(prompt: Piece, branches: Sequence[Branch]) -> list[Branch]:
    return [*([Branch(0, prompt)] if len(prompt) else []), *branches]


def _tokens(branches: Sequence[Branch]) -> int:
    return sum(len(branch.piece) for branch in branches)
