"""Visible pairs of a packed row, counted from its metadata: what attention must compute, without a T x T mask."""

import numpy as np
import torch

from dirl.batches import Layout


def visible_pairs(layout: Layout) -> int:
    """Number of (query, key) pairs for which `dirl.attention.visible` holds; any order of tokens, O(T log T)."""
    if len(layout) == 0:
        return 0
    columns = (layout.group_ids, layout.branch_ids, layout.block_ids, layout.view_ids)
    runs, sizes = _runs(torch.stack(columns, 1).cpu().numpy())
    group, branch, block, view = runs.T
    own = int((sizes * sizes).sum())

    # A key that is clean stands in the stream of its (group, branch); a query reads its own and the prompt's.
    streams = int(branch.max()) + 1
    blocks = int(block.max()) + 1
    clean = view == 0
    place = (group * streams + branch) * blocks + block
    order = np.argsort(place[clean], kind="stable")
    keys = place[clean][order]
    before = np.concatenate([[0], np.cumsum(sizes[clean][order])])

    def earlier(stream: np.ndarray) -> np.ndarray:
        """Clean tokens of a stream in blocks before the query's."""
        start = stream * blocks
        return before[np.searchsorted(keys, start + block)] - before[np.searchsorted(keys, start)]

    seen = earlier(group * streams + branch) + np.where(branch > 0, earlier(group * streams), 0)
    return own + int((sizes * seen).sum())


def _runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of [T, 4] and how often each occurs; ids count from 0 or up."""
    starts = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(1)]))
    lengths = np.diff(np.append(starts, len(rows)))
    distinct, index = np.unique(rows[starts], axis=0, return_inverse=True)
    return distinct, np.bincount(index.ravel(), weights=lengths).astype(np.int64)
