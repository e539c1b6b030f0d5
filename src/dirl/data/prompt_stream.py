"""Prompts in a seeded order without end, of which all ranks take turns or are dealt shares."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from dirl.types import Prompt


class PromptStream(Iterator[Prompt]):
    """This rank's prompts, pass after pass over the data, each pass in an order of its own.

    The order is one for all ranks: the prompts of a rollout are the same set whatever their number. A rank takes the
    places that it has been dealt, then those behind all that were dealt, where the ranks take turns. What each has
    taken is made known to all, by `settle`, before they are dealt again.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.prompts, self.seed, self.rank, self.world_size = prompts, seed, rank, world_size
        self.place = 0
        """The first in the endless order that, so far as all know, nobody has taken."""
        self.skip: set[int] = set()
        """Places behind it that somebody has."""
        self.taken: list[int] = []
        """Places that this rank has taken, which the others do not know of."""
        self._dealt: list[int] = []
        self._turn = rank
        self._orders: dict[int, np.ndarray] = {}

    def __next__(self) -> Prompt:
        if self._dealt:
            place = self._dealt.pop(0)
        else:
            while self._turn in self.skip or self._turn in self.taken:
                self._turn += self.world_size
            place, self._turn = self._turn, self._turn + self.world_size
        self.taken.append(place)
        return self.at(place)

    def at(self, place: int) -> Prompt:
        """The prompt at a place of the endless order."""
        number, index = divmod(place, len(self.prompts))
        if number not in self._orders:
            order = np.random.default_rng([self.seed, number]).permutation(len(self.prompts))
            self._orders = {n: o for n, o in self._orders.items() if n == number - 1} | {number: order}
        return self.prompts[self._orders[number][index]]

    def settle(self, taken: Iterable[int]) -> None:
        """All ranks have taken these since they last settled."""
        self.skip.update(taken)
        self.taken = []
        while self.place in self.skip:
            self.skip.remove(self.place)
            self.place += 1

    def free_places(self, count: int) -> list[int]:
        """The next places that nobody has taken; of a stream that is settled."""
        free = (place for place in range(self.place, self.place + count + len(self.skip)) if place not in self.skip)
        return list(islice(free, count))

    def deal(self, own: Sequence[int], behind: int) -> None:
        """Take these places next, then turns from `behind` on, which is behind all that any rank was dealt."""
        self._dealt, self._turn = list(own), behind + self.rank

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "skip": sorted(self.skip), "taken": list(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.skip, self.taken = state["place"], set(state["skip"]), list(state["taken"])
        self._dealt, self._turn = [], self.place + self.rank


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """A digest that is equal for equal prompts in equal order."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(repr((prompt.prompt_id, prompt.input_ids, prompt.ground_truth)).encode())
    return digest.hexdigest()
