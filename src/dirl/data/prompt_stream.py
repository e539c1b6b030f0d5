"""Prompts in a seeded order without end that all ranks share."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dirl.types import Prompt


class PromptStream(Iterator[Prompt]):
    """This rank's prompts, pass after pass over the data, each pass in an order of its own.

    The order is one for all ranks, who take turns: the prompts of a rollout are the same set whatever their number.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.prompts, self.seed, self.world_size = prompts, seed, world_size
        self.place = rank
        """Where in the endless order this rank looks next; it then moves on by the number of ranks."""
        self.skip: set[int] = set()
        """Its places further on whose prompts were taken before, when there was another number of ranks."""
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __next__(self) -> Prompt:
        while self.place in self.skip:
            self.skip.remove(self.place)
            self.place += self.world_size
        number, index = divmod(self.place, len(self.prompts))
        if number != self._pass:
            self._order = np.random.default_rng([self.seed, number]).permutation(len(self.prompts))
            self._pass = number
        self.place += self.world_size
        return self.prompts[self._order[index]]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "skip": sorted(self.skip)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.skip = state["place"], set(state["skip"])


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Equal for equal prompts in equal order."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(repr((prompt.prompt_id, prompt.input_ids, prompt.ground_truth)).encode())
    return digest.hexdigest()
