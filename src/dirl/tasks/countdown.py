r"""Task: reach a target from three numbers, each used once; any correct expression counts.

3,5,7->56 is solved as 49,63,08;3+5=08;08*7=56;\boxed{(3+5)*7}

The search is written down: first what the first two numbers must make for +, - and * with the third to reach
the target (56-7, 56+7, 56/7, or -- where nothing within 0..99 does), then the operator that makes one of
these, then the one that finishes. Without the first part a model of half a million parameters hardly does
better than guess the operators; with it, the task is still harder than arithmetic. Everything up to the box
has two digits, so that every character has a fixed place.

Some expression that takes the numbers, 1..9 each, in the order given always reaches the target; the teacher
knows that, the reward does not ask for it.
"""

import itertools
import json
import operator
import random
from collections.abc import Callable

from dirl import rewards
from dirl.tasks.generated import GeneratedTask, Problem, boxed, boxed_answer

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LARGEST_NUMBER = 9
LARGEST_VALUE = 99

Numbers = tuple[int, int, int]


class Countdown(GeneratedTask):
    """A mistaken teacher picks operators that miss the target, and works them out to the end."""

    name = "countdown"
    alphabet = "0123456789+-*=;,>()}"
    reward = rewards.Countdown
    max_question_characters = len("9,9,9->99")
    max_solution_characters = len(r"85,95,18;9+9=18;18*5=90;\boxed{(9+9)*5}")

    def problem(self, rng: random.Random) -> Problem:
        a, b, c = (rng.randint(1, LARGEST_NUMBER) for _ in range(3))
        numbers = a, b, c
        target = rng.choice(sorted(set(values(numbers).values())))
        best = next(operators for operators, value in values(numbers).items() if value == target)
        return Problem(
            question=f"{','.join(map(str, numbers))}->{target:02d}",
            solution=worked_expression(numbers, best, target),
            ground_truth=json.dumps({"numbers": numbers, "target": target}),
        )

    def teacher(self, problem: Problem, rng: random.Random) -> str:
        if rng.random() >= self.mistake_rate:
            return problem.solution
        numbers, target = read_ground_truth(problem)
        missing = [operators for operators, value in values(numbers).items() if value != target]
        return worked_expression(numbers, rng.choice(missing), target)

    def is_correct(self, problem: Problem, solution: str) -> bool:
        """Compares with the expressions that take the numbers in order, as all of the teacher's do."""
        numbers, target = read_ground_truth(problem)
        reaching = {expression(numbers, operators) for operators, value in values(numbers).items() if value == target}
        return boxed_answer(solution) in reaching


def values(numbers: Numbers) -> dict[tuple[str, str], int]:
    """Value of (a op b) op c for each pair of operators whose steps stay within 0..99, in a fixed order."""
    a, b, c = numbers
    found = {}
    for first, second in itertools.product(OPERATORS, repeat=2):
        partial = OPERATORS[first](a, b)
        value = OPERATORS[second](partial, c)
        if partial >= 0 and 0 <= value <= LARGEST_VALUE:
            found[first, second] = value
    return found


def worked_expression(numbers: Numbers, operators: tuple[str, str], target: int) -> str:
    a, b, c = numbers
    partial = OPERATORS[operators[0]](a, b)
    steps = f"{a}{operators[0]}{b}={partial:02d};{partial:02d}{operators[1]}{c}={values(numbers)[operators]:02d};"
    return ",".join(wanted(c, target)) + ";" + steps + boxed(expression(numbers, operators))


def wanted(last: int, target: int) -> list[str]:
    """For +, - and *, the x in x op last = target."""
    quotient, remainder = divmod(target, last)
    found = (target - last, target + last, -1 if remainder else quotient)
    return [f"{x:02d}" if 0 <= x <= LARGEST_VALUE else "--" for x in found]


def expression(numbers: Numbers, operators: tuple[str, str]) -> str:
    """(a op b) op c with brackets only where they matter."""
    a, b, c = numbers
    first, second = operators
    return f"({a}{first}{b}){second}{c}" if second == "*" and first != "*" else f"{a}{first}{b}{second}{c}"


def read_ground_truth(problem: Problem) -> tuple[Numbers, int]:
    truth = json.loads(problem.ground_truth)
    return tuple(truth["numbers"]), truth["target"]
