"""Files of at most 300 lines and functions of at most 40: each has one subject, and is read at one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import dirl.callbacks
import pytest

import dirl

FILE_LINES = 300
FUNCTION_LINES = 40
"""Of the body alone: a signature is as long as the config that it describes, and a docstring is not read as code."""

LONGER_FILES: dict[str, str] = {}
"""Exceptions: why a file may be longer, by its path in the package, e.g. `data/chat.py`."""
LONGER_FUNCTIONS: dict[str, str] = {}
"""Exceptions: why a function may be longer, by path and name, e.g. `data/chat.py:encode_turns`."""

ROOTS = [Path(dirl.__file__).parent, Path(dirl.callbacks.__file__).parent]
FILES = {
    str(path.relative_to(root.parent if root.name == "callbacks" else root)): path
    for root in ROOTS
    for path in sorted(root.rglob("*.py"))
}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement after the docstring to the end of the last; 0 if there is none."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def functions(text: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name and lines of each function and method of a source, inner ones included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, body_lines(node)


def too_long_files() -> set[str]:
    return {name for name, path in FILES.items() if len(path.read_text("utf-8").splitlines()) > FILE_LINES}


def too_long_functions() -> set[str]:
    found = (pair for name, path in FILES.items() for pair in functions(path.read_text("utf-8"), f"{name}:"))
    return {name for name, lines in found if lines > FUNCTION_LINES}


def test_package_and_callbacks_are_read() -> None:
    assert {"types.py", "reading/rows.py", "callbacks/rollout.py"} <= set(FILES)


def test_files_have_at_most_300_lines_and_no_exception_is_out_of_date() -> None:
    assert too_long_files() == set(LONGER_FILES), "cut the file by subject"


def test_functions_have_at_most_40_lines_and_no_exception_is_out_of_date() -> None:
    assert too_long_functions() == set(LONGER_FUNCTIONS), "give parts of the function names of their own"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("def f(\n    a,\n    b,\n):\n    x = a\n    return x", 2),
        ('def f(a):\n    """One.\n\n    Two.\n    """\n    return (\n        a\n    )', 3),
        ('async def f():\n    """Nothing else."""', 0),
    ],
)
def test_signature_and_docstring_are_not_counted(text: str, lines: int) -> None:
    assert list(functions(text)) == [("f", lines)]
