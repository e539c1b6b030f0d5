"""Prompts: put into the chat template, and streamed in a seeded order that all ranks share."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dirl.data.chat import FitCounts, encode_prompt, fit_prompt
from dirl.data.encoding import check_ids, check_on_bad_row
from dirl.data.prompt_template import check_template, fill
from dirl.data.reading import OnBadRow, Row, Rows
from dirl.data.schemas import prompt_row
from dirl.models import ModelDescription
from dirl.progress_bar import bar
from dirl.types import Prompt

log = logging.getLogger(__name__)


@dataclass
class PromptEncoder:
    """Turns the rows of a task into prompts for one model, within the limits of a run.

    Args:
        description: of the model.
        max_tokens: longest prompt, chat template included.
        overflow: longer ones are dropped and counted, or an error.
        chat_template_kwargs: for the tokenizer's template.
        on_bad_row: an error, or the row is skipped and counted.
        quiet: neither a progress bar nor a warning of skipped rows.
    """

    description: ModelDescription
    max_tokens: int
    overflow: Literal["drop", "error"] = "drop"
    chat_template_kwargs: dict | None = None
    on_bad_row: OnBadRow = "error"
    quiet: bool = True
    counts: FitCounts = field(default_factory=FitCounts)
    """What became of all rows so far."""

    def __post_init__(self) -> None:
        check_on_bad_row(self.on_bad_row)

    def __call__(
        self,
        rows: Rows | Sequence[Row],
        columns: tuple[str, str] = ("question", "ground_truth_answer"),
        system_prompt: str | None = None,
        template: str | None = None,
        name: str | Sequence[str] = "the task",
    ) -> list[Prompt]:
        """All prompts that are within the limit and have a truth. The prompt id is the row's number.

        Args:
            rows: with question and truth in `columns`.
            system_prompt: put before every question.
            template: what is put round each question, see `dirl.data.prompt_template`.
            name: of the source, for messages.

        Raises:
            ValueError: of the first bad row with its place, or no prompt is left.
        """
        check_template(template)
        prompts, first_bad, counts = [], "", self.counts
        where_of = getattr(rows, "where", lambda index: f"{name}, row {index + 1}")
        for index in bar(range(len(rows)), desc="tokenise prompts", shown=not self.quiet, leave=False):
            where = where_of(index)
            try:
                row = prompt_row(rows[index], where, *columns)
                if row.truth is None:
                    counts.without_truth += 1
                    continue
                asked = fill(template, row.question), system_prompt, self.chat_template_kwargs
                ids = _ids(self.description, *asked, where)
            except ValueError as error:
                if self.on_bad_row == "error":
                    raise
                counts.bad, first_bad = counts.bad + 1, first_bad or str(error)
                continue
            if fit_prompt(ids, self.max_tokens, self.overflow, counts, where) is not None:
                prompts.append(Prompt(str(index), tuple(ids), _text(row.question), row.truth, row.info))
        self._check_left(prompts, first_bad, name)
        return prompts

    def _check_left(self, prompts: list[Prompt], first_bad: str, name: str | Sequence[str]) -> None:
        if first_bad and not self.quiet:
            log.warning("%d rows of %s are skipped, the first: %s", self.counts.bad, name, first_bad)
        if not prompts:
            raise ValueError(
                f"{name!r}: no prompt within max_prompt_tokens={self.max_tokens} is left ({self.counts}): raise it or "
                "mend the data" + (f"; the first bad row: {first_bad}" if first_bad else "")
            )


def _ids(
    description: ModelDescription,
    question: str | list[dict[str, Any]],
    system_prompt: str | None,
    chat_template_kwargs: dict | None,
    where: str,
) -> list[int]:
    """The prompt in tokens, all of which the model may meet."""
    options = {"chat_template_kwargs": chat_template_kwargs, "where": where}
    ids = encode_prompt(description.tokenizer, question, system_prompt, **options)
    check_ids(ids, description.spec.banned, description.tokenizer, where)
    return ids


def _text(question: str | list[dict[str, Any]]) -> str:
    return question if isinstance(question, str) else question[-1]["content"]


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
