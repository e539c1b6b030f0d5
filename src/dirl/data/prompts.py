"""Prompts: read, put into the chat template, and streamed in a seeded order that all ranks share."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from dirl.data.chat import FitCounts, encode_prompt, fit_prompt
from dirl.data.reading import check_prompt, read_rows
from dirl.models import ModelDescription
from dirl.types import Prompt


def load_prompts(
    source: str | list[str],
    description: ModelDescription,
    split: str,
    max_tokens: int,
    overflow: Literal["drop", "error"] = "drop",
    columns: tuple[str, str] = ("question", "ground_truth_answer"),
    system_prompt: str | None = None,
    chat_template_kwargs: dict | None = None,
    counts: FitCounts | None = None,
    quiet: bool = True,
) -> list[Prompt]:
    """All prompts of a source that are within the limit. The prompt id is the row's number."""
    rows = read_rows(source, split)
    prompts = []
    for index in tqdm(range(len(rows)), desc=f"tokenise {split} prompts", disable=quiet, leave=False):
        where = rows.where(index)
        question, answer = check_prompt(rows[index], where, *columns)
        ids = encode_prompt(
            description.tokenizer, question, system_prompt, chat_template_kwargs=chat_template_kwargs, where=where
        )
        if fit_prompt(ids, max_tokens, overflow, counts, where) is not None:
            text = question if isinstance(question, str) else question[-1]["content"]
            prompts.append(Prompt(str(index), tuple(ids), text, answer))
    if not prompts:
        raise ValueError(
            f"{source!r}: no prompt within max_prompt_tokens={max_tokens}; raise it or shorten the prompts"
        )
    return prompts


class PromptStream(Iterator[Prompt]):
    """This rank's prompts, pass after pass over the data, each pass in an order of its own.

    Ranks take turns, so the prompts of a rollout are the same set whatever the number of ranks.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.prompts, self.seed, self.rank, self.world_size = prompts, seed, rank, world_size
        self.taken = 0
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __next__(self) -> Prompt:
        number, place = divmod(self.taken * self.world_size + self.rank, len(self.prompts))
        if number != self._pass:
            self._order = np.random.default_rng([self.seed, number]).permutation(len(self.prompts))
            self._pass = number
        self.taken += 1
        return self.prompts[self._order[place]]

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
