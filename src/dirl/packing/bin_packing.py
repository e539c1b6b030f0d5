"""Bin packing of responses into rows: which of them share a row of at most a budget of tokens, with few prompt copies.

Responses to one prompt share its tokens only within a row, so splitting a group costs a copy of the prompt. A row takes
the subset of a group's responses that fills it best (subset sums, exact), then whole groups that fit, then part of one.
Four plans are made by two rules for all rows: a row begins with the group that is already begun, which repeats few
prompts, or with the longest response left, which is the hardest to place; and the rest of a row takes part of a group,
or only whole ones. While there are more rows than `fewest_rows`, plans of random order and rules are tried too, but not
for one group alone (SFT), of which they would all be the same. Of all plans the one of fewest rows, then of fewest
prompt tokens, is taken.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

Lengths = tuple[int, Sequence[int]]
"""Tokens of a group: of its prompt, and of each response."""
Row = list[tuple[int, list[int]]]
"""What a row holds: numbers of groups, and of each the numbers of responses; a prompt is counted once for each."""

GROUPS_TRIED = 32
RESPONSES_TRIED = 128
"""How many are tried for the rest of a row, and for a subset: more would fill hardly better, and take long."""

RANDOM_PLANS = 256
RESPONSES_PLACED = 32768
"""Random plans tried, and the responses that all of them place together: some tenths of a second."""

PIECES_COUNTED = 8
"""So many responses in a row hardly leave room when their lengths are equal."""


class Rules(NamedTuple):
    """How one row is filled: whether it begins with the longest response left, and whether it may end with a part."""

    longest: bool
    parts: bool


def bin_pack(groups: Sequence[Lengths], token_budget: int) -> list[Row]:
    """Every response of every group in one row, at most `token_budget` tokens in each.

    A response that exceeds the budget with its prompt has a row of its own. The same groups give the same rows.
    """
    sizes = [prompt + sum(lengths) for prompt, lengths in groups]
    order = sorted((number for number, (_, lengths) in enumerate(groups) if lengths), key=lambda n: -sizes[n])
    plans = [_fill(groups, token_budget, order, itertools.repeat(Rules(*r))) for r in _EVERY_RULE]
    fewest = fewest_rows(groups, token_budget)
    rng, responses = random.Random(0), sum(len(lengths) for _, lengths in groups)
    for _ in range(min(RANDOM_PLANS, RESPONSES_PLACED // responses) if len(order) > 1 else 0):
        if min(map(len, plans)) <= fewest:
            break
        plans.append(_fill(groups, token_budget, rng.sample(order, len(order)), _random_rules(rng)))
    return min(plans, key=lambda rows: (len(rows), sum(groups[number][0] for row in rows for number, _ in row)))


def fewest_rows(groups: Sequence[Lengths], token_budget: int) -> int:
    """A number of rows that no plan can be below; none may reach it.

    The larger of two bounds. By tokens: rows hold all responses, the prompt of each group as often as the group needs
    rows, and at least one prompt each. By pieces: of responses over 1/(k+1) of a row at most k share one. A response
    over the budget counts as one that fills a row.
    """
    begun = [(prompt, [min(n, token_budget - prompt) for n in lengths]) for prompt, lengths in groups if lengths]
    begun = [(prompt, lengths) for prompt, lengths in begun if prompt < token_budget]
    if not begun:
        return sum(len(lengths) for _, lengths in groups)
    shortest = min(prompt for prompt, _ in begun)
    copies = [math.ceil(sum(lengths) / (token_budget - prompt)) for prompt, lengths in begun]
    tokens = sum(n * prompt + sum(lengths) for n, (prompt, lengths) in zip(copies, begun, strict=True))
    rows = math.ceil(tokens / token_budget)
    while tokens + max(0, rows - sum(copies)) * shortest > rows * token_budget:
        rows += 1
    lengths = [n for _, lengths in begun for n in lengths]
    pieces = (
        math.ceil(sum((k + 1) * n > token_budget - shortest for n in lengths) / k) for k in range(1, PIECES_COUNTED)
    )
    return max(rows, *pieces)


_EVERY_RULE = tuple(itertools.product((False, True), repeat=2))


def _random_rules(rng: random.Random) -> Iterator[Rules]:
    """Endless; how often each rule holds differs from plan to plan."""
    longest, parts = rng.random(), rng.random()
    while True:
        yield Rules(rng.random() < longest, rng.random() < parts)


def _fill(groups: Sequence[Lengths], token_budget: int, order: Sequence[int], rules: Iterable[Rules]) -> list[Row]:
    """One plan: the groups in this order, each row by the next of the rules."""
    sizes = [prompt + sum(lengths) for prompt, lengths in groups]
    left = {g: sorted(range(len(groups[g][1])), key=lambda i: -groups[g][1][i]) for g in order}
    rows: list[Row] = []
    for longest, parts in rules:
        if not left:
            break
        room, row = token_budget, []
        first = max(left, key=lambda g: groups[g][0] + groups[g][1][left[g][0]]) if longest else next(iter(left))
        found: tuple[int, list[int]] | None = first, _beginning(groups[first], left[first], room)
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
