"""Prompts dealt to ranks so that each has about as many tokens to make and to learn from."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from dirl.types import Trajectory

KEPT = 0.5
"""The share that is kept of what was known of a prompt's responses, when it is answered again."""


class Share(NamedTuple):
    """What is dealt to one rank."""

    items: list[int]
    """Numbers of what it was dealt, ascending."""
    steps: list[int]
    """How many of them are in each optimizer step."""


def deal(costs: Sequence[float], steps: int, ranks: int) -> list[Share]:
    """Items that lie in `steps` runs, each run spread by itself: the costliest first, to whoever has least of the run.

    Ties go to the one with least in all, then to the lowest rank. Ranks may have different numbers of items, or none.
    """
    bounds = [round(i * len(costs) / steps) for i in range(steps + 1)]
    shares = [Share([], []) for _ in range(ranks)]
    total = [0.0] * ranks
    for begin, end in pairwise(bounds):
        run = [0.0] * ranks
        own: list[list[int]] = [[] for _ in range(ranks)]
        for item in sorted(range(begin, end), key=lambda i: (-costs[i], i)):
            rank = min(range(ranks), key=lambda r: (run[r], total[r], r))
            run[rank] += costs[item]
            total[rank] += costs[item]
            own[rank].append(item)
        for share, items in zip(shares, own, strict=True):
            share.items.extend(sorted(items))
            share.steps.append(len(items))
    return shares


class ResponseLengths:
    """A running mean of response tokens by prompt, the same on all ranks; of what only this one knows, apart.

    `pending` is what its own rollouts have brought since all have settled.
    """

    def __init__(self) -> None:
        self.known: dict[str, float] = {}
        self.pending: dict[str, float] = {}

    def take(self, sampled: Iterable[Trajectory]) -> None:
        """Take the lengths of a rollout: the mean of each prompt's responses."""
        lengths: dict[str, list[int]] = {}
        for trajectory in sampled:
            lengths.setdefault(trajectory.prompt_id, []).append(trajectory.response_length)
        self.pending |= {name: sum(found) / len(found) for name, found in lengths.items()}

    def settle(self, pending: Sequence[Mapping[str, float]]) -> None:
        """What each rank had pending, in the order of the ranks."""
        for found in pending:
            for name, mean in found.items():
                before = self.known.get(name, mean)
                self.known[name] = KEPT * before + (1 - KEPT) * mean
        self.pending = {}

    def copy(self) -> "ResponseLengths":
        """A copy of it, which later changes leave as it is."""
        made = ResponseLengths()
        made.load(self.known, self.pending)
        return made

    def load(self, known: Mapping[str, float], pending: Mapping[str, float]) -> None:
        self.known, self.pending = dict(known), dict(pending)

    def costs(self, prompts: Sequence[tuple[str, int]], group_size: int) -> list[float]:
        """Tokens to be expected of a group of each prompt (id, tokens); of one without answers, the mean of all that
        have some, so that before anything is known its own length decides."""
        usual = sum(self.known.values()) / len(self.known) if self.known else 0.0
        return [tokens + group_size * self.known.get(name, usual) for name, tokens in prompts]
