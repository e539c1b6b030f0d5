r"""Task: the sum of two two-digit numbers, worked column by column.

47+85 is solved as 7+5=12;4+8+1=13;\boxed{132}

Each step is local. A column copies two digits of the question and the carry, which is the first digit of the
column before it; the answer copies the columns' second digits. Columns run from the lowest digit up, so
whatever a block needs lies in it or to its left. Column sums and operands always have two
digits, so that each character's place is fixed up to the length of the answer: a model of half a million
parameters then spends its few hundred steps on the sums and not on finding its place.
"""

import random
from collections.abc import Sequence

from dirl import rewards
from dirl.tasks.generated import GeneratedTask, Problem, boxed, boxed_answer

COLUMNS = 2


class Arithmetic(GeneratedTask):
    """The teacher's mistakes are columns off by one, each column alike and on its own.

    With the default rate a column is right with probability 0.74, so the right sum is always by far the most
    likely one, and a whole solution with probability 0.55.
    """

    name = "arithmetic"
    alphabet = "0123456789+=;}"
    reward = rewards.ExactAnswer
    max_question_characters = len("99+99")
    max_solution_characters = len(r"9+9=19;9+9+1=19;\boxed{199}")

    def problem(self, rng: random.Random) -> Problem:
        first, second = (rng.randrange(10 ** (COLUMNS - 1), 10**COLUMNS) for _ in range(2))
        solution = worked_sum(str(first), str(second), slips=[0] * COLUMNS)
        return Problem(question=f"{first}+{second}", solution=solution, ground_truth=str(first + second))

    def teacher(self, problem: Problem, rng: random.Random) -> str:
        column_rate = 1.0 - (1.0 - self.mistake_rate) ** (1 / COLUMNS)
        slips = [rng.choice((-1, 1)) if rng.random() < column_rate else 0 for _ in range(COLUMNS)]
        first, second = problem.question.split("+")
        return worked_sum(first, second, slips)

    def is_correct(self, problem: Problem, solution: str) -> bool:
        return boxed_answer(solution) == problem.ground_truth


def worked_sum(first: str, second: str, slips: Sequence[int]) -> str:
    """Column k, from the lowest, comes out `slips[k]` too high; its carry and the answer follow from that.

    A slip that would leave 0..19, where a column's sum must lie, goes the other way. The lowest column that
    slips has a wrong digit in the answer, so any slip makes the answer wrong.
    """
    steps, answer, carry = [], "", "0"
    for column, (x, y, slip) in enumerate(zip(reversed(first), reversed(second), slips, strict=True)):
        total = int(x) + int(y) + int(carry)
        total += slip if 0 <= total + slip <= 19 else -slip
        steps.append(f"{x}+{y}={total:02d};" if column == 0 else f"{x}+{y}+{carry}={total:02d};")
        carry, digit = map(str, divmod(total, 10))
        answer = digit + answer
    return "".join(steps) + boxed(str(int(carry + answer)))
