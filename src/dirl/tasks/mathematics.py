r"""Tasks: the suites of mathematics. A response is right if its last `\boxed{...}` is the answer, by math-verify."""

import re
from abc import abstractmethod
from typing import Any, ClassVar

from dirl.reading.rows import Row, quoted
from dirl.rewards import Accuracy, Reward
from dirl.tasks.base import Split
from dirl.tasks.suite import Suite

STEP_BY_STEP = "{question}\nPlease reason step by step, and put your final answer within $\\boxed{}$."
"""DiRL's prompt. OpenCompass, with which SDAR was evaluated, has the same without the dollar signs."""


class MathSuite(Suite):
    """Problems with one answer each, which the reward `accuracy` compares.

    Args:
        train: rows to learn from: a hub name, file, folder, or a list of them; None: there are none.
        val: rows to evaluate on, likewise.
        question_column: for rows that name it otherwise.
        answer_column: for rows that name it otherwise.
        prompt_template: what is asked, with `{question}` in it.
        system_prompt: put before every question.
    """

    @abstractmethod
    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        question_column: str = "problem",
        answer_column: str = "answer",
        prompt_template: str | None = STEP_BY_STEP,
        system_prompt: str | None = None,
    ) -> None:
        super().__init__(train, val, (question_column, answer_column), prompt_template, system_prompt)

    def rewards(self) -> list[Reward]:
        return [Accuracy()]


class GSM8K(MathSuite):
    """Word problems of grade school (arXiv:2110.14168): 7,473 to train on, 1,319 to evaluate on.

    An answer is a worked solution that ends in `#### 18`; what follows the marks is the truth.
    """

    def __init__(
        self,
        train: str | list[str] | None = "openai/gsm8k:main",
        val: str | list[str] | None = "openai/gsm8k:main",
        question_column: str = "question",
        **options: Any,
    ) -> None:
        super().__init__(train=train, val=val, question_column=question_column, **options)

    def row(self, row: Row, where: str) -> Row:
        answer = row.get(self.columns[1])
        if isinstance(answer, str) and "####" not in answer:
            raise ValueError(
                f"{where}: {self.columns[1]}={quoted(answer)} has no `####` before its result, as those of GSM8K have; "
                "take dirl.tasks.Files for other problems"
            )
        return row


class MATH500(MathSuite):
    """500 problems of MATH's test set (arXiv:2305.20050), with answers in LaTeX."""

    def __init__(self, val: str | list[str] | None = "HuggingFaceH4/MATH-500", **options: Any) -> None:
        super().__init__(val=val, **options)


class AIME24(MathSuite):
    """The 30 problems of the AIME of 2024; answers are integers from 0 to 999.

    Thirty problems are few: take many samples of each (64 are usual) and report their mean.
    """

    splits: ClassVar[dict[Split, str]] = {"train": "train", "val": "train"}

    def __init__(self, val: str | list[str] | None = "HuggingFaceH4/aime_2024", **options: Any) -> None:
        super().__init__(val=val, **options)

    def row(self, row: Row, where: str) -> Row:
        answer = row.get(self.columns[1])
        if answer is not None and not re.fullmatch(r"\s*\$?\d{1,3}(\^\{?\\circ\}?)?\$?\s*", str(answer)):
            raise ValueError(
                f"{where}: {self.columns[1]}={quoted(answer)} is no integer from 0 to 999, as the answers of the AIME "
                "are; take dirl.tasks.Files for other problems"
            )
        return row


class AIME25(AIME24):
    """The 30 problems of the AIME of 2025; answers are integers from 0 to 999."""

    def __init__(self, val: str | list[str] | None = "yentinglin/aime_2025", **options: Any) -> None:
        super().__init__(val=val, **options)


class OlympiadBench(MathSuite):
    """OlympiadBench (arXiv:2402.14008): the 674 problems of mathematics in English, without pictures, open-ended.

    `final_answer` is a list of all that an answer must have. A theorem to prove has none and is skipped and counted; a
    row with a picture cannot be asked. Tolerances of the suite (`error`) are not used: its problems of mathematics have
    exact answers.
    """

    splits: ClassVar[dict[Split, str]] = {"train": "train", "val": "train"}

    def __init__(
        self,
        val: str | list[str] | None = "Hothan/OlympiadBench:OE_TO_maths_en_COMP",
        question_column: str = "question",
        answer_column: str = "final_answer",
        **options: Any,
    ) -> None:
        super().__init__(val=val, question_column=question_column, answer_column=answer_column, **options)

    def row(self, row: Row, where: str) -> Row:
        pictures = sorted(name for name, value in row.items() if name.startswith("image_") and value is not None)
        if pictures:
            raise ValueError(
                f"{where}: {', '.join(pictures)}: the question has pictures, which cannot be asked; take the part "
                "without them (OE_TO_...), or skip such rows by --data.on_bad_row skip"
            )
        row = {name: value for name, value in row.items() if not name.startswith("image_")}
        question = row.get(self.columns[0])
        if row.get("context") and isinstance(question, str):
            row[self.columns[0]] = f"{row['context']}\n{question}"
        return row
