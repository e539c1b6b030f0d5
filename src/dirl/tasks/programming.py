"""Tasks: the suites of programming. A response is right if its code passes the suite's tests, in a sandbox."""

import ast
from typing import ClassVar

from dirl.reading.rows import Row, quoted
from dirl.rewards import Reward, UnitTests
from dirl.tasks.base import Split
from dirl.tasks.suite import Suite

IMPLEMENT = (
    "Read the following function signature and docstring, and fully implement the function described. Your response "
    "should only contain the code for this function.\n{question}"
)
"""OpenCompass's prompt for chat models (its `humaneval_openai_sample_evals_gen`)."""
EXPERT = (
    "You are an expert Python programmer, and here is your task:\n{question}\n You should submit your final solution "
    "in the following format: ```python\n\n```"
)
"""OpenCompass's prompt without examples (its `sanitized_mbpp_mdblock_0shot_nocot_gen`), after arXiv:2108.07732."""
CONVERTED = ("question", "tests")


class ProgrammingSuite(Suite):
    """Functions to write, which the reward `unit_tests` tries; where there is no sandbox, making it is an error."""

    def rewards(self) -> list[Reward]:
        return [UnitTests()]


class HumanEval(ProgrammingSuite):
    """HumanEval (arXiv:2107.03374): 164 functions to complete from signature and docstring.

    The row's prompt is put before the response's code, so that an answer may leave out its imports and helpers.

    Args:
        train: file, folder, hub name, or a list of them; None: there is nothing to train on.
        val: the same, to evaluate on.
        prompt_template: what is asked, with `{question}` in it.
        system_prompt: put before every question.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = "openai/openai_humaneval",
        prompt_template: str | None = IMPLEMENT,
        system_prompt: str | None = None,
    ) -> None:
        super().__init__(train, val, CONVERTED, prompt_template, system_prompt)

    def row(self, row: Row, where: str) -> Row:
        prompt, test, name = (text_of(row, column, where) for column in ("prompt", "test", "entry_point"))
        return {
            "question": prompt,
            "tests": f"{test}\n\ncheck({name})\n",
            "prelude": prompt,
            "tried": [name],
            "task_id": row.get("task_id"),
        }


class MBPP(ProgrammingSuite):
    """MBPP (arXiv:2108.07732), its sanitized part: 257 functions to write, each with three tests that are shown.

    The full part (`google-research-datasets/mbpp:full`, 500 to evaluate on) has other columns, which are known too.

    Args:
        train: hub name, file, folder, or a list of them; None: there is nothing to train on.
        val: the same, to evaluate on.
        prompt_template: what is asked, with `{question}` (the text and the tests) in it.
        system_prompt: put before every question.
    """

    splits: ClassVar[dict[Split, str]] = {"train": "train", "val": "test"}

    def __init__(
        self,
        train: str | list[str] | None = "google-research-datasets/mbpp:sanitized",
        val: str | list[str] | None = "google-research-datasets/mbpp:sanitized",
        prompt_template: str | None = EXPERT,
        system_prompt: str | None = None,
    ) -> None:
        super().__init__(train, val, CONVERTED, prompt_template, system_prompt)

    def row(self, row: Row, where: str) -> Row:
        text = text_of(row, "text" if "text" in row else "prompt", where)
        tests = "\n".join(texts_of(row, "test_list", where))
        if not tests:
            raise ValueError(f"{where}: test_list={quoted(row['test_list'])} holds no test; mend or remove the row")
        setup = texts_of(row, "test_imports", where) if "test_imports" in row else [row.get("test_setup_code") or ""]
        return {
            "question": f"{text}\nYour code should pass these tests:\n\n{tests}",
            "tests": tests,
            "prelude": "\n".join(setup),
            "tried": names_of(row.get("code"), tests),
            "task_id": row.get("task_id"),
        }


def names_of(code: object, tests: str) -> list[str]:
    """What a solution defines and the tests use; `sum` is a function of MBPP's, and so are other built-in names."""
    try:
        defined, used = ast.parse(str(code or "")), ast.parse(tests)
    except SyntaxError:
        return []
    names = [node.name for node in defined.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    asked = {node.id for node in ast.walk(used) if isinstance(node, ast.Name)}
    return [name for name in dict.fromkeys(names) if name in asked]


def text_of(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{where}: {column}={quoted(value)}; expected a text, as the suite has there; the row has "
            f"{quoted(sorted(row), 300)}"
        )
    return value


def texts_of(row: Row, column: str, where: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(
            f"{where}: {column}={quoted(value)}; expected a list of texts, as the suite has there; the row has "
            f"{quoted(sorted(row), 300)}"
        )
    return value
