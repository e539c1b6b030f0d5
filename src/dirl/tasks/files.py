"""Task: questions and answers as they stand in files, folders or datasets of the hub."""

from dirl.reading.prompt_template import check_template
from dirl.reading.prompts import PromptEncoder
from dirl.reading.rows import read_rows
from dirl.tasks.base import Split, Task
from dirl.types import Prompt


class Files(Task):
    """Rows with a question and a ground truth. It does not know what is correct: name the rewards of the run.

    Args:
        train: file, folder, list of them, or hub name; None: there is nothing to train on.
        val: the same for evaluation; None: no evaluation.
        question_column: column of the question; names of nested values have dots (`extra_info.question`).
        answer_column: column of the ground truth: a text, a number, a list of all that an answer must have; rows where
            it is null are skipped and counted. Rewards get the other columns as `info`.
        system_prompt: put before every question.
        prompt_template: what is asked, with `{question}` in it: rewards look for answers in a form that the model must
            be told of. None: the question alone.
        val_split: split of a hub dataset, and of a folder with files named by split, that `val` is.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        question_column: str = "question",
        answer_column: str = "ground_truth_answer",
        system_prompt: str | None = None,
        prompt_template: str | None = None,
        val_split: str = "test",
    ) -> None:
        check_template(prompt_template)
        self.sources = {"train": train, "val": val}
        self.hub_splits = {"train": "train", "val": val_split}
        self.columns = (question_column, answer_column)
        self.system_prompt, self.prompt_template = system_prompt, prompt_template

    def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
        source = self.sources[split]
        if source is None:
            return []
        rows = read_rows(source, self.hub_splits[split])
        return encode(rows, self.columns, self.system_prompt, self.prompt_template, source)

    def options(self) -> dict[str, tuple[object, object]]:
        """What is said of the files: value and default of each option by its name."""
        return {
            "question_column": (self.columns[0], "question"),
            "answer_column": (self.columns[1], "ground_truth_answer"),
            "system_prompt": (self.system_prompt, None),
            "prompt_template": (self.prompt_template, None),
        }

    def origin(self, split: Split) -> str:
        return f"{split}={self.sources[split]!r}"
