r"""Task: 4x4 Sudoku with 4 to 7 blanks and one solution.

12.434.22143.321 has the blanks `.`, row by row, and is solved as \boxed{1234341221434321}
"""

import itertools
import json
import random

from dirl import rewards
from dirl.tasks.generated import GeneratedTask, Problem, boxed, boxed_answer

DIGITS = "1234"
BLANK = "."
BLANKS = (4, 7)


class Sudoku(GeneratedTask):
    """A mistaken teacher fills one or two of the blanks with another digit."""

    name = "sudoku"
    alphabet = DIGITS + BLANK + "}"
    reward = rewards.Sudoku4
    max_question_characters = 16
    max_solution_characters = len(r"\boxed{}") + 16

    def problem(self, rng: random.Random) -> Problem:
        while True:
            grid = rng.choice(GRIDS)
            blanks = set(rng.sample(range(16), rng.randint(*BLANKS)))
            puzzle = "".join(BLANK if cell in blanks else digit for cell, digit in enumerate(grid))
            if solution_count(puzzle) == 1:
                return Problem(question=puzzle, solution=boxed(grid), ground_truth=json.dumps({"puzzle": puzzle}))

    def teacher(self, problem: Problem, rng: random.Random) -> str:
        if rng.random() >= self.mistake_rate:
            return problem.solution
        cells = list(boxed_answer(problem.solution))
        blanks = [cell for cell, character in enumerate(problem.question) if character == BLANK]
        for cell in rng.sample(blanks, rng.randint(1, 2)):
            cells[cell] = rng.choice([digit for digit in DIGITS if digit != cells[cell]])
        return boxed("".join(cells))

    def is_correct(self, problem: Problem, solution: str) -> bool:
        """Whether the answer is the one solution of the puzzle."""
        return boxed_answer(solution) == boxed_answer(problem.solution)


def solution_count(puzzle: str) -> int:
    """Number of full grids that agree with the givens."""
    grids = (1 << len(GRIDS)) - 1
    for cell, digit in enumerate(puzzle):
        if digit != BLANK:
            grids &= GRIDS_WITH[cell, digit]
    return grids.bit_count()


def all_grids() -> tuple[str, ...]:
    """The 288 full grids, put together from the pairs of rows whose two boxes are right."""
    rows = ["".join(row) for row in itertools.permutations(DIGITS)]
    pairs = [upper + lower for upper, lower in itertools.product(rows, repeat=2) if set(upper[:2]) == set(lower[2:])]
    grids = (top + bottom for top, bottom in itertools.product(pairs, repeat=2))
    return tuple(grid for grid in grids if all(len(set(grid[column::4])) == 4 for column in range(4)))


GRIDS = all_grids()
GRIDS_WITH = {
    (cell, digit): sum(1 << index for index, grid in enumerate(GRIDS) if grid[cell] == digit)
    for cell in range(16)
    for digit in DIGITS
}
"""Which grids hold this digit in this cell, as the bits of an integer."""
