"""Splitting, at their views, of pieces that are too long for one row.

A noised view attends to the clean blocks before its own and to itself, never to another view. So the views of a
response may lie in different rows, each behind a copy of the clean blocks before it: losses, and their sum's gradient,
stay what they are.
"""

import numpy as np

from dirl.packing.pieces import Piece

OVER_THE_BUDGET = 1.25
"""Rows of no more tokens than a view needs would be many, each with nearly all clean tokens: 4 times as many in all."""


def split_piece(piece: Piece, token_budget: int, prompt_tokens: int = 0) -> list[Piece]:
    """The piece as it is if it fits into a row behind its prompt, else as few parts as can be that each fit.

    Each part has consecutive views, and the clean blocks before the last of them. Where one view with all that it
    attends to is over the budget, each part may have `row_limit` tokens, its prompt included.

    Args:
        piece: clean tokens first, then the views in order of their blocks; of one response or conversation.
        prompt_tokens: of the prompt that each row of the parts repeats.
    """
    if prompt_tokens + len(piece) <= token_budget:
        return [piece]
    clean = int((piece.view_ids == 0).sum())
    keys = np.stack([piece.block_ids, piece.view_ids])[:, clean:]
    starts = clean + np.flatnonzero((np.diff(keys, prepend=-1) != 0).any(0))
    ends = np.append(starts[1:], len(piece))
    context = np.searchsorted(piece.block_ids[:clean], piece.block_ids[starts], side="left")
    seen = context + ends - starts
    room = row_limit(prompt_tokens + int(seen.max(initial=0)), token_budget) - prompt_tokens
    parts, first = [], 0
    while first < len(starts):
        sizes = context[first:] + ends[first:] - starts[first]
        last = first + int(np.searchsorted(sizes, room, side="right")) - 1
        parts.append(piece[np.r_[: context[last], starts[first] : ends[last]]])
        first = last + 1
    return parts


def row_limit(needed: float, token_budget: int) -> int:
    """The most tokens of a row that holds a part: the budget, or, where a view needs more, a quarter more than that.

    Args:
        needed: by the view that attends to most: its own tokens, the clean ones before it, and the prompt.
    """
    return token_budget if needed <= token_budget else int(OVER_THE_BUDGET * needed)
