"""Tasks whose problems are generated: each has a generator, and a teacher that solves with mistakes.

SFT learns the teacher, mistakes included; as each step's right continuation is still the most likely one, RL can
sharpen the model past its teacher.
"""

import random
from abc import abstractmethod
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from dirl.reading.prompt_template import check_template, fill
from dirl.reading.prompts import PromptEncoder
from dirl.rewards import Reward
from dirl.tasks.base import Split, Task
from dirl.types import Prompt

OPEN_BOX = "\\boxed{"
"""One token of its own: a fifth of the demo's tokens would else be spent on spelling it."""
BLOCK = 4
"""Token limits are multiples of this, the block size of the demo's model."""
CHAT_TOKENS = 8
"""Room that `max_prompt_tokens` leaves for what the chat template puts around a question."""

VALIDATION_SEED = 10_000
"""Added to a task's seed for the conversations of SFT's validation."""


@dataclass(frozen=True)
class Problem:
    question: str
    solution: str
    """Correct, worked, ends in \\boxed{...}."""
    ground_truth: str
    """What the task's reward compares a response with."""


class GeneratedTask(Task):
    """Problems and an imperfect teacher. The same options give the same rows.

    Train and validation prompts are distinct questions; conversations may repeat a question. No validation prompt is
    among the train prompts and their conversations; those of SFT's validation are the same teacher's, drawn anew. Each
    of the four has a random stream of its own, so more of one leaves the others as they were.

    Args:
        mistake_rate: probability that a solution of the teacher holds a mistake. A mistake is made in one step, the
            later steps follow from it, and the boxed answer is therefore wrong.
        seed: of problems and teacher.
        train_prompts: how many.
        val_prompts: how many.
        solutions: of the teacher, for SFT.
        val_solutions: of the teacher, for SFT's validation.
        prompt_template: what is asked, with `{question}` in it, of a model that does not know the task. None: the
            question alone.

    >>> from dirl.tasks import Arithmetic
    >>> Arithmetic().problem(random.Random(0)).question
    '59+63'
    """

    name: ClassVar[str]
    alphabet: ClassVar[str]
    """Every character that a question or a solution can hold outside of `words`, each once."""
    words: ClassVar[tuple[str, ...]] = (OPEN_BOX,)
    """What is one token though it has several characters; together with `alphabet` it is the vocabulary."""
    reward: ClassVar[type[Reward]]
    """Scores a response against `Problem.ground_truth`."""
    max_question_characters: ClassVar[int]
    max_solution_characters: ClassVar[int]
    """The longest of the teacher's solutions, mistaken ones included."""

    def __init__(
        self,
        mistake_rate: float = 0.45,
        seed: int = 0,
        train_prompts: int = 2000,
        val_prompts: int = 200,
        solutions: int = 20_000,
        prompt_template: str | None = None,
        val_solutions: int = 256,
    ) -> None:
        if not 0.0 <= mistake_rate < 1.0:
            raise ValueError(f"task.mistake_rate={mistake_rate} is not a probability below 1; use e.g. 0.45")
        counts = {"train_prompts": train_prompts, "val_prompts": val_prompts}
        for name, value in (counts | {"solutions": solutions, "val_solutions": val_solutions}).items():
            if value < 1:
                raise ValueError(f"task.{name}={value}: use at least 1")
        check_template(prompt_template)
        self.mistake_rate, self.seed, self.prompt_template = mistake_rate, seed, prompt_template
        self.train_prompts, self.val_prompts = train_prompts, val_prompts
        self.solutions, self.val_solutions = solutions, val_solutions

    @abstractmethod
    def problem(self, rng: random.Random) -> Problem:
        """A problem, of which everything random comes from `rng`."""

    @abstractmethod
    def teacher(self, problem: Problem, rng: random.Random) -> str:
        """A worked solution, wrong with probability `mistake_rate`."""

    @abstractmethod
    def is_correct(self, problem: Problem, solution: str) -> bool:
        """Whether the boxed answer of a teacher's solution is right."""

    def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
        return encode(self.rows(split), template=self.prompt_template, name=self.origin(split))

    def rewards(self) -> list[Reward]:
        return [self.reward()]

    def conversations(self, split: Split) -> list[dict[str, object]]:
        lessons = self.lessons if split == "train" else self._drawn_anew(self.val_solutions).lessons
        return [conversation(fill(self.prompt_template, p.question), solution) for p, solution in lessons]

    def rows(self, split: Split) -> list[dict[str, str]]:
        """`{"question", "ground_truth_answer"}` of the split's problems."""
        problems = self._held_out
        if split == "train":
            problems = distinct_problems(self, self._stream("rl"), self.train_prompts, self._held_out_questions)
        return [{"question": p.question, "ground_truth_answer": p.ground_truth} for p in problems]

    @cached_property
    def lessons(self) -> list[tuple[Problem, str]]:
        """Rows of problems with the teacher's solutions."""
        fresh, teacher = fresh_problems(self, self._stream("sft"), self._held_out_questions), self._stream("teacher")
        return [(p, self.teacher(p, teacher)) for p, _ in zip(fresh, range(self.solutions), strict=False)]

    def _drawn_anew(self, solutions: int) -> "GeneratedTask":
        """A task of the same problems and teacher, with random streams of its own."""
        other = copy(self)
        for kept in ("lessons", "_held_out"):
            vars(other).pop(kept, None)
        other.seed, other.val_prompts, other.solutions = self.seed + VALIDATION_SEED, 1, solutions
        return other

    @cached_property
    def _held_out(self) -> list[Problem]:
        return distinct_problems(self, self._stream("eval"), self.val_prompts, exclude=frozenset())

    @property
    def _held_out_questions(self) -> frozenset[str]:
        return frozenset(problem.question for problem in self._held_out)

    def _stream(self, of: str) -> random.Random:
        return random.Random(f"{self.name}/{self.seed}/{of}")

    @classmethod
    def characters(cls) -> str:
        """The alphabet of a model whose every token is one character: `words` are spelled."""
        return "".join(dict.fromkeys("".join((cls.alphabet, *cls.words))))

    @property
    def teacher_accuracy(self) -> float:
        """Share of the solutions whose boxed answer is right."""
        return sum(self.is_correct(*lesson) for lesson in self.lessons) / self.solutions

    @property
    def max_prompt_tokens(self) -> int:
        """One token a character, chat template included, rounded up to whole blocks."""
        return whole_blocks(self.max_question_characters + CHAT_TOKENS)

    @property
    def max_response_tokens(self) -> int:
        """One token a character, but one for `OPEN_BOX`, and the end token, rounded up to whole blocks."""
        return whole_blocks(self.max_solution_characters - len(OPEN_BOX) + 2)


def distinct_problems(task: GeneratedTask, rng: random.Random, count: int, exclude: frozenset[str]) -> list[Problem]:
    problems: dict[str, Problem] = {}
    repeats = 0
    for problem in fresh_problems(task, rng, exclude):
        repeats = repeats + 1 if problem.question in problems else 0
        problems.setdefault(problem.question, problem)
        if len(problems) == count:
            return list(problems.values())
        if repeats > 1000:
            raise ValueError(
                f"task {task.name!r} has too few questions for {count} distinct ones: found {len(problems)} "
                f"outside the {len(exclude)} held out; ask for fewer prompts"
            )
    raise AssertionError("fresh_problems never ends")


def fresh_problems(task: GeneratedTask, rng: random.Random, exclude: frozenset[str]) -> Iterator[Problem]:
    """Problems without end, none of them in `exclude`; they may repeat."""
    misses = 0
    while True:
        problem = task.problem(rng)
        if problem.question not in exclude:
            misses = 0
            yield problem
        elif (misses := misses + 1) > 10_000:
            raise ValueError(
                f"task {task.name!r} has no questions left beside the {len(exclude)} held out; lower val_prompts"
            )


def conversation(question: str | list[dict[str, Any]], solution: str) -> dict[str, object]:
    user = {"role": "user", "content": question}
    return {"messages": [user, {"role": "assistant", "content": solution}]}


def boxed(answer: str) -> str:
    return f"{OPEN_BOX}{answer}}}"


def boxed_answer(solution: str) -> str:
    """What the last \\boxed{...} of a teacher's solution holds; their answers hold no braces."""
    _, found, rest = solution.rpartition(OPEN_BOX)
    assert found and rest.endswith("}"), f"not a teacher's solution: {solution!r}"
    return rest[:-1]


def whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK
