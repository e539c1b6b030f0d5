"""Sets of token ids as ranges: a slice of a tensor for each, where a list of them would have to go to the device."""

from functools import cache

Spans = tuple[tuple[int, int], ...]
"""Ranges of token ids, in order: each from its first up to, without, its second number."""


@cache
def spans(ids: tuple[int, ...]) -> Spans:
    """The ids, in any order, as the fewest ranges."""
    found: list[tuple[int, int]] = []
    for index in sorted(set(ids)):
        if found and found[-1][1] == index:
            found[-1] = found[-1][0], index + 1
        else:
            found.append((index, index + 1))
    return tuple(found)
