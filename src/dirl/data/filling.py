"""Which responses share a packed row: rows filled to a budget of tokens, with few copies of the prompts.

Responses to one prompt share its tokens only within a row, so dividing a group costs a copy of the prompt. A row takes
the subset of a group's responses that fills it best (subset sums, exact), then whole groups that fit, then part of one.
Four plans are made and the one of fewest rows, then of fewest prompt tokens, is taken: a row begins with the group that
is already begun, which repeats few prompts, or with the longest response left, which is the hardest to place; and the
rest of a row takes part of a group, or only whole ones.
"""

from collections.abc import Sequence

Lengths = tuple[int, Sequence[int]]
"""Tokens of a group: of its prompt, and of each response."""
Row = list[tuple[int, list[int]]]
"""What a row holds: numbers of groups, and of each the numbers of responses; a prompt is counted once for each."""

GROUPS_TRIED = 32
RESPONSES_TRIED = 128
"""For the rest of a row, and for a subset: more would fill hardly better, and take long."""


def fill_rows(groups: Sequence[Lengths], token_budget: int) -> list[Row]:
    """Every response of every group in one row, at most `token_budget` tokens in each.

    A response that exceeds the budget with its prompt has a row of its own.
    """
    plans = [_fill(groups, token_budget, longest, parts) for longest in (False, True) for parts in (False, True)]
    return min(plans, key=lambda rows: (len(rows), sum(groups[number][0] for row in rows for number, _ in row)))


def _fill(groups: Sequence[Lengths], token_budget: int, longest: bool, parts: bool) -> list[Row]:
    """One plan.

    Args:
        longest: a row begins with the longest response left, else with the group already begun or the largest.
        parts: the rest of a row may take part of a group.
    """
    sizes = [prompt + sum(lengths) for prompt, lengths in groups]
    numbers = sorted((g for g, (_, lengths) in enumerate(groups) if lengths), key=lambda g: -sizes[g])
    left = {g: sorted(range(len(groups[g][1])), key=lambda i: -groups[g][1][i]) for g in numbers}
    rows: list[Row] = []
    while left:
        room, row = token_budget, []
        first = max(left, key=lambda g: groups[g][0] + groups[g][1][left[g][0]]) if longest else next(iter(left))
        found = first, _beginning(groups[first], left[first], room)
        while found is not None:
            number, chosen = found
            row.append((number, sorted(chosen)))
            tokens = sum(groups[number][1][i] for i in chosen)
            room -= groups[number][0] + tokens
            sizes[number] -= tokens
            taken = set(chosen)
            if rest := [i for i in left.pop(number) if i not in taken]:
                left = {number: rest, **left}
            found = _whole(sizes, left, room) or (_part(groups, left, room) if parts else None)
        rows.append(row)
    return rows


def _beginning(group: Lengths, left: list[int], room: int) -> list[int]:
    """The first responses of an empty row: the longest one and those that fill the row best beside it."""
    longest, *others = left
    return [longest, *_best_subset(group[1], others, room - group[0] - group[1][longest])]


def _whole(sizes: Sequence[int], left: dict[int, list[int]], room: int) -> tuple[int, list[int]] | None:
    """The largest group of which all that is left fits, by the sizes of what is left, prompt included."""
    number = max((n for n in left if sizes[n] <= room), key=sizes.__getitem__, default=None)
    return None if number is None else (number, left[number])


def _part(groups: Sequence[Lengths], left: dict[int, list[int]], room: int) -> tuple[int, list[int]] | None:
    """The responses of one group that fill the rest of a row best.

    They must have more tokens than the prompt that they repeat: else it is cheaper to leave the room empty.
    """
    best, filled = None, 0
    for number in list(left)[:GROUPS_TRIED]:
        prompt, lengths = groups[number]
        chosen = _best_subset(lengths, left[number], room - prompt)
        tokens = sum(lengths[i] for i in chosen)
        if tokens > prompt and prompt + tokens > filled:
            best, filled = (number, chosen), prompt + tokens
    return best


def _best_subset(lengths: Sequence[int], candidates: Sequence[int], room: int) -> list[int]:
    """The candidates, longest first, whose lengths have the largest sum within `room`.

    Bit s of `reached[n]` says that some of the first n candidates add up to s.
    """
    fitting = [i for i in candidates if lengths[i] <= room]
    if not fitting or sum(lengths[i] for i in fitting) <= room:
        return fitting
    fitting = fitting[:RESPONSES_TRIED]
    within = (1 << (room + 1)) - 1
    reached = [1]
    for i in fitting:
        reached.append((reached[-1] | reached[-1] << lengths[i]) & within)
    total, chosen = reached[-1].bit_length() - 1, []
    for n in range(len(fitting), 0, -1):
        if not reached[n - 1] >> total & 1:
            chosen.append(fitting[n - 1])
            total -= lengths[fitting[n - 1]]
    return chosen
