"""Division of segments that no row would hold: at responses, and within a response at its views.

A noised view attends to the clean blocks before its own and to itself, never to another view. So the views of a
response may lie in different rows, each behind a copy of the clean blocks before it: losses, and their sum's gradient,
stay what they are.
"""

import itertools

import numpy as np

from dirl.data.segments import Segment


def prompt_and_responses(segment: Segment) -> tuple[Segment, list[Segment]]:
    """The prompt (branch 0) and the responses (each other branch); both are stretches of the segment."""
    starts = np.flatnonzero(np.diff(segment.branch_ids, prepend=-1)).tolist()
    parts = [take(segment, slice(a, b)) for a, b in itertools.pairwise([*starts, len(segment)])]
    prompt = parts.pop(0) if segment.branch_ids[0] == 0 else take(segment, slice(0))
    return prompt, parts


def parts_within(segment: Segment, room: int) -> list[Segment]:
    """The segment as it is if it has at most `room` tokens, else its views in as few parts of so many as can be.

    Each part has the clean blocks before its last view, and consecutive views. Where even one view with these is too
    long, it and all after it are one last part, over `room`.

    Args:
        segment: clean tokens first, then the views in order of their blocks; of one response or conversation.
    """
    if len(segment) <= room:
        return [segment]
    clean = int((segment.view_ids == 0).sum())
    keys = np.stack([segment.block_ids, segment.view_ids])[:, clean:]
    starts = clean + np.flatnonzero((np.diff(keys, prepend=-1) != 0).any(0))
    ends = np.append(starts[1:], len(segment))
    context = np.searchsorted(segment.block_ids[:clean], segment.block_ids[starts], side="left")
    parts, first = [], 0
    while first < len(starts):
        sizes = context[first:] + ends[first:] - starts[first]
        count = int(np.searchsorted(sizes, room, side="right")) or len(sizes)
        last = first + count - 1
        parts.append(take(segment, np.r_[: context[last], starts[first] : ends[last]]))
        first = last + 1
    return parts


def take(segment: Segment, index: slice | np.ndarray) -> Segment:
    return Segment(**{name: value[index] for name, value in vars(segment).items()})
