"""The option `data` of rollout and evaluate: questions of files, or limits for those of a task."""

import sys
from dataclasses import dataclass
from typing import Literal, cast, get_args

from dirl.models import ModelDescription
from dirl.reading.prompt_template import check_template
from dirl.reading.prompts import PromptEncoder
from dirl.reading.rows import OnBadRow
from dirl.tasks import Files, Split, Task
from dirl.tasks.given import check_given_once, said_of_files
from dirl.types import Prompt


@dataclass(frozen=True)
class PromptData:
    """Questions to answer.

    Args:
        path: file, folder or hub name; None: a task is given.
        split: of a hub dataset, `test` by default; or of a task: `train` or, by default, `val`.
        limit: use the first so many; None: all.
        prompt_template: what is asked, with `{question}` in it; None: the question alone.
        on_bad_row: a row that cannot be used is an error, or is skipped and counted.
    """

    path: str | None = None
    split: str | None = None
    limit: int | None = None
    max_prompt_tokens: int = 1024
    overflow: Literal["drop", "error"] = "error"
    question_column: str = "question"
    answer_column: str = "ground_truth_answer"
    system_prompt: str | None = None
    chat_template_kwargs: dict | None = None
    prompt_template: str | None = None
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        for name in ("limit", "max_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value}: use at least 1" + (", or null" if name == "limit" else ""))
        check_template(self.prompt_template)

    def load(self, description: ModelDescription, task: Task | None = None) -> list[Prompt]:
        """The prompts of the task, if there is one, or those of the path."""
        limits = (self.max_prompt_tokens, self.overflow, self.chat_template_kwargs, self.on_bad_row)
        encode = PromptEncoder(description, *limits, quiet=False)
        task, split = task or self.files(), self.split_of(task)
        prompts = task.prompts(split, encode)
        if not prompts:
            raise ValueError(
                f"{task.origin(split)}: the task has no such prompts; name another, or a split by data.split"
            )
        if encode.counts.left_out:
            print(f"{task.origin(split)}: {encode.counts}")
        return prompts[: self.limit]

    def check(self, task: Task | None) -> None:
        """Raise ValueError for both path and task, for neither, and for a split that no task has."""
        check_given_once(task, {"path": self.path})
        self.split_of(task)
        if unused := said_of_files(task, self.files().options()):
            print(unused, file=sys.stderr)

    def split_of(self, task: Task | None) -> Split:
        """Whose prompts are asked for; files have no others than the validation's."""
        if task is None or self.split is None:
            return "val"
        if self.split not in get_args(Split):
            raise ValueError(f"data.split={self.split!r}: a task has {' and '.join(get_args(Split))}; name one of them")
        return cast(Split, self.split)

    def files(self) -> Files:
        columns = (self.question_column, self.answer_column)
        return Files(None, self.path, *columns, self.system_prompt, self.prompt_template, self.split or "test")
