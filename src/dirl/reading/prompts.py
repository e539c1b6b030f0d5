"""Prompts: the rows of a task, put into the chat template of a model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dirl.models import ModelDescription
from dirl.progress_bar import bar
from dirl.reading.chat import FitCounts, encode_prompt, fit_prompt
from dirl.reading.encoding import check_ids, check_on_bad_row
from dirl.reading.prompt_template import check_template, fill
from dirl.reading.rows import ListedRows, OnBadRow, Row, Rows
from dirl.reading.schemas import prompt_row
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
            template: what is put round each question, see `dirl.reading.prompt_template`.
            name: of the source, for messages.

        Raises:
            ValueError: of the first bad row with its place, or no prompt is left.
        """
        check_template(template)
        prompts, first_bad, counts = [], "", self.counts
        rows = rows if hasattr(rows, "where") else ListedRows(rows, name)
        for index in bar(range(len(rows)), desc="tokenise prompts", shown=not self.quiet, leave=False):
            where = rows.where(index)
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
    options: dict[str, Any] = {"chat_template_kwargs": chat_template_kwargs, "where": where}
    ids = encode_prompt(description.tokenizer, question, system_prompt, **options)
    check_ids(ids, description.spec.banned, description.tokenizer, where)
    return ids


def _text(question: str | list[dict[str, Any]]) -> str:
    return question if isinstance(question, str) else question[-1]["content"]
