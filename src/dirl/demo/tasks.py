r"""What a demo task is, the registry of tasks, and the data files made from one.

A task makes problems whose answers can be checked and has a teacher that solves them with mistakes. SFT
learns the teacher, mistakes included; as each step's right continuation is still the most likely one, RL can
sharpen the model past its teacher.

>>> task = load_task("arithmetic")
>>> task.problem(random.Random(0)).question
'59+63'
"""

import importlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

TASKS = {
    "arithmetic": "dirl.demo.arithmetic.Arithmetic",
    "countdown": "dirl.demo.countdown.Countdown",
    "sudoku": "dirl.demo.sudoku.Sudoku",
}
BOX_ALPHABET = "\\{}bdeox"
"""The characters of `\\boxed{}`; a task's alphabet adds those of its own questions and solutions."""
BLOCK = 4
"""Token limits are multiples of this, the demo's block size."""
CHAT_TOKENS = 8
"""Room that `max_prompt_tokens` leaves for what the chat template puts around a question."""


@dataclass(frozen=True)
class Problem:
    question: str
    solution: str
    """Correct, worked, ends in \\boxed{...}."""
    ground_truth: str
    """What the task's reward compares a response with."""


class Task(ABC):
    """Problems and an imperfect teacher; everything random comes from the `rng` passed in.

    mistake_rate: probability that a solution of the teacher holds a mistake. A mistake is made in one step,
    the later steps follow from it, and the boxed answer is therefore wrong.
    """

    name: ClassVar[str]
    alphabet: ClassVar[str]
    """Every character that a question or a solution can hold, each once: the vocabulary, in this order."""
    reward: ClassVar[str]
    """Class path of the reward that scores a response against `Problem.ground_truth`."""
    max_question_characters: ClassVar[int]
    max_solution_characters: ClassVar[int]
    """Of the teacher's solutions, mistaken ones included."""

    def __init__(self, mistake_rate: float = 0.45) -> None:
        if not 0.0 <= mistake_rate < 1.0:
            raise ValueError(f"mistake_rate={mistake_rate} is not a probability below 1; use e.g. 0.45")
        self.mistake_rate = mistake_rate

    @abstractmethod
    def problem(self, rng: random.Random) -> Problem: ...

    @abstractmethod
    def teacher(self, problem: Problem, rng: random.Random) -> str:
        """A worked solution, wrong with probability `mistake_rate`."""

    @abstractmethod
    def is_correct(self, problem: Problem, solution: str) -> bool:
        """Whether the boxed answer of a teacher's solution is right."""

    @property
    def max_prompt_tokens(self) -> int:
        """One token a character, chat template included, rounded up to whole blocks."""
        return whole_blocks(self.max_question_characters + CHAT_TOKENS)

    @property
    def max_response_tokens(self) -> int:
        """One token a character and the end token, rounded up to whole blocks."""
        return whole_blocks(self.max_solution_characters + 1)


@dataclass(frozen=True)
class TaskFiles:
    """JSON Lines files of one task, and how good the teacher behind the SFT file is."""

    sft: Path
    """{"messages": [user, assistant]}: questions with the teacher's solutions; questions may repeat."""
    rl: Path
    """{"question", "ground_truth_answer"}: distinct questions."""
    eval: Path
    """As `rl`; no question of it is in `sft` or `rl`."""
    teacher_accuracy: float
    """Share of the SFT solutions whose boxed answer is right."""


def load_task(name: str, mistake_rate: float = 0.45) -> Task:
    if name not in TASKS:
        raise ValueError(f"task={name!r} is unknown; choose one of {sorted(TASKS)}")
    module, _, cls = TASKS[name].rpartition(".")
    return getattr(importlib.import_module(module), cls)(mistake_rate=mistake_rate)


def write_task_data(
    task: Task, directory: str | Path, seed: int, sft_examples: int, rl_prompts: int, eval_prompts: int
) -> TaskFiles:
    """Write the three files of a task. The same arguments give the same bytes.

    Each file has a random stream of its own: more SFT examples or RL prompts leave the evaluation as it was.
    """
    for name, value in (("sft_examples", sft_examples), ("rl_prompts", rl_prompts), ("eval_prompts", eval_prompts)):
        if value < 1:
            raise ValueError(f"{name}={value} would write an empty file; ask for at least 1")
    streams = {split: random.Random(f"{task.name}/{seed}/{split}") for split in ("eval", "rl", "sft", "teacher")}
    held_out = distinct_problems(task, streams["eval"], eval_prompts, exclude=frozenset())
    questions = frozenset(problem.question for problem in held_out)
    prompts = distinct_problems(task, streams["rl"], rl_prompts, exclude=questions)
    fresh = fresh_problems(task, streams["sft"], exclude=questions)
    lessons = [(p, task.teacher(p, streams["teacher"])) for p, _ in zip(fresh, range(sft_examples), strict=False)]

    directory = Path(directory)
    return TaskFiles(
        sft=write_jsonl(directory / "sft.jsonl", (sft_row(problem, solution) for problem, solution in lessons)),
        rl=write_jsonl(directory / "rl.jsonl", map(rl_row, prompts)),
        eval=write_jsonl(directory / "eval.jsonl", map(rl_row, held_out)),
        teacher_accuracy=sum(task.is_correct(*lesson) for lesson in lessons) / sft_examples,
    )


def distinct_problems(task: Task, rng: random.Random, count: int, exclude: frozenset[str]) -> list[Problem]:
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


def fresh_problems(task: Task, rng: random.Random, exclude: frozenset[str]) -> Iterator[Problem]:
    """Problems without end, none of them in `exclude`; they may repeat."""
    misses = 0
    while True:
        problem = task.problem(rng)
        if problem.question not in exclude:
            misses = 0
            yield problem
        elif (misses := misses + 1) > 10_000:
            raise ValueError(
                f"task {task.name!r} has no questions left beside the {len(exclude)} held out; lower eval_prompts"
            )


def sft_row(problem: Problem, solution: str) -> dict[str, object]:
    user = {"role": "user", "content": problem.question}
    return {"messages": [user, {"role": "assistant", "content": solution}]}


def rl_row(problem: Problem) -> dict[str, object]:
    return {"question": problem.question, "ground_truth_answer": problem.ground_truth}


def write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def boxed_answer(solution: str) -> str:
    """What the last \\boxed{...} of a teacher's solution holds; their answers hold no braces."""
    _, found, rest = solution.rpartition("\\boxed{")
    assert found and rest.endswith("}"), f"not a teacher's solution: {solution!r}"
    return rest[:-1]


def whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK
