r"""Verifiers of puzzles with many right answers; the last `\boxed{...}` holds the solution."""

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import ClassVar

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.math_answers import last_boxed

MAX_EXPRESSION = 200
"""Characters; what is longer is no solution, and could be nested too deeply to parse."""

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Countdown(Reward):
    """1 for an expression that uses each number exactly once and gives the target, else 0.

    Allowed are + - * / between numbers, and parentheses; it is evaluated in exact fractions. `ground_truth`
    is JSON, e.g. `{"numbers": [3, 5, 7], "target": 22}`, which `(3 * 5) + 7` solves.
    """

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = True
    votes = "text"

    def answer(self, response: str) -> str | None:
        return boxed_without_blanks(response)

    def __call__(self, sample: RewardSample) -> float:
        numbers, target = _countdown_task(sample.ground_truth)
        expression = last_boxed(sample.response)
        if expression is None or len(expression) > MAX_EXPRESSION or not re.fullmatch(r"[0-9+\-*/()\s]+", expression):
            return 0.0
        try:
            used: list[int] = []
            value = _value_of(ast.parse(" ".join(expression.split()), mode="eval").body, used)
        except (SyntaxError, ZeroDivisionError):
            return 0.0
        return float(value == target and sorted(used) == sorted(numbers))


class Sudoku4(Reward):
    """1 for a filled 4 x 4 grid in which rows, columns and 2 x 2 boxes hold 1 to 4 each and the givens stand, else 0.

    The solution is 16 digits, row by row, blanks between them allowed. `ground_truth` is JSON, e.g.
    `{"puzzle": "1..4/..1./.1../4..1"}`, with `.` where the puzzle is blank; slashes between rows are optional.
    """

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = True
    votes = "text"

    def answer(self, response: str) -> str | None:
        return boxed_without_blanks(response)

    def __call__(self, sample: RewardSample) -> float:
        puzzle = _sudoku_task(sample.ground_truth)
        grid = "".join((last_boxed(sample.response) or "").split())
        if not re.fullmatch(r"[1-4]{16}", grid):
            return 0.0
        agrees = all(given in (".", cell) for given, cell in zip(puzzle, grid, strict=True))
        return float(agrees and all(len({grid[i] for i in unit}) == 4 for unit in _UNITS))


def boxed_without_blanks(response: str) -> str | None:
    found = last_boxed(response)
    return None if found is None else "".join(found.split())


def _units() -> list[list[int]]:
    """Cells of each row, column and box, as indices into the 16."""
    cells = range(16)
    belongs: tuple[Callable[[int], int], ...] = (lambda i: i // 4, lambda i: i % 4, lambda i: i // 8 * 2 + i % 4 // 2)
    return [[i for i in cells if unit(i) == n] for unit in belongs for n in range(4)]


_UNITS = _units()


def _countdown_task(ground_truth: str) -> tuple[list[int], Fraction]:
    task = _json_object(ground_truth)
    numbers, target = task.get("numbers"), task.get("target")
    well_formed = isinstance(numbers, list) and numbers and all(type(n) is int for n in [*numbers, target])
    if not well_formed or not isinstance(numbers, list) or not isinstance(target, int):
        raise ValueError(f'ground_truth={ground_truth!r} must be like {{"numbers": [3, 5, 7], "target": 22}}')
    return numbers, Fraction(target)


def _sudoku_task(ground_truth: str) -> str:
    puzzle = _json_object(ground_truth).get("puzzle")
    flat = re.sub(r"[/\s]", "", puzzle) if isinstance(puzzle, str) else ""
    if not re.fullmatch(r"[1-4.]{16}", flat):
        raise ValueError(f'ground_truth={ground_truth!r} must be like {{"puzzle": "1..4..1..1..4..1"}}, 16 cells')
    return flat


def _json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"ground_truth={text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"ground_truth={text!r} is not a JSON object")
    return value


def _value_of(node: ast.expr, used: list[int]) -> Fraction:
    """Value of an expression; appends its numbers to `used`. SyntaxError for anything but + - * / of integers."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value_of(node.left, used), _value_of(node.right, used))
    raise SyntaxError(f"{type(node).__name__} is not allowed")
