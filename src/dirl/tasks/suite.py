"""Tasks that are published suites of problems: rows of the hub, or files in the same form, and the published prompt."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from dirl.reading.prompt_template import check_template
from dirl.reading.prompts import PromptEncoder
from dirl.reading.rows import Row, Rows, read_rows
from dirl.tasks.base import Split, Task
from dirl.types import Prompt


class Suite(Task):
    """Rows as their publisher has them, each checked to be one of this suite.

    A subclass says in its constructor where the rows lie and what they hold; what that takes are its options.
    `configs/evaluation/` has the settings that papers evaluated the suites with, docs/suites.md a table of them.
    """

    splits: ClassVar[dict[Split, str]] = {"train": "train", "val": "test"}
    """Names that the hub has for the splits."""

    @abstractmethod
    def __init__(
        self,
        train: str | list[str] | None,
        val: str | list[str] | None,
        columns: tuple[str, str],
        prompt_template: str | None,
        system_prompt: str | None,
    ) -> None:
        check_template(prompt_template)
        self.sources = {"train": train, "val": val}
        self.columns, self.prompt_template, self.system_prompt = columns, prompt_template, system_prompt

    def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
        source = self.sources[split]
        if source is None:
            return []
        rows = ConvertedRows(self._read(source, split), self.row)
        return encode(rows, self.columns, self.system_prompt, self.prompt_template, source)

    def row(self, row: Row, where: str) -> Row:
        """What is asked and compared, from a row as it is published; ValueError for one of another suite."""
        return row

    def origin(self, split: Split) -> str:
        return f"task {type(self).__name__}, {split}={self.sources[split]!r}"

    def _read(self, source: str | list[str], split: Split) -> Rows:
        try:
            return read_rows(source, self.splits[split])
        except ValueError as error:
            raise ValueError(
                f"task {type(self).__name__}: {error}; without a network, name a file, or a folder of files, that has "
                f"the rows: --task.{split} PATH"
            ) from error


@dataclass(frozen=True)
class ConvertedRows:
    """The rows of a source, each converted when it is read."""

    rows: Rows
    convert: Callable[[Row, str], Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.convert(self.rows[index], self.where(index))

    def where(self, index: int) -> str:
        return self.rows.where(index)
