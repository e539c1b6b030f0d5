"""Tasks of the study: what names them on a command line, and what a new model for them needs to know."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dirl.tasks import GeneratedTask, ReasoningGym
from dirl.tasks.generated import BLOCK, CHAT_TOKENS


@dataclass(frozen=True)
class Limits:
    """What a model of characters must be able to read and write."""

    alphabet: str
    max_prompt_tokens: int
    max_response_tokens: int


class StudyTask(ABC):
    @abstractmethod
    def args(self, seed: int) -> list[str]:
        """Options of `dirl fit`, on top of a config with a task."""

    @abstractmethod
    def limits(self, seed: int) -> Limits: ...


@dataclass(frozen=True)
class OwnTask(StudyTask):
    """Of this package: it has a teacher with mistakes, whom RL can surpass."""

    kind: type[GeneratedTask]

    def args(self, seed: int) -> list[str]:
        return [f"--task=dirl.tasks.{self.kind.__name__}", f"--task.init_args.seed={seed}"]

    def limits(self, seed: int) -> Limits:
        task = self.kind(seed=seed)
        return Limits(task.characters(), task.max_prompt_tokens, blocks(task.max_solution_characters + 1))


@dataclass(frozen=True)
class GymTask(StudyTask):
    """Of reasoning-gym: SFT has right answers alone, which are not worked out."""

    generator: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def args(self, seed: int) -> list[str]:
        named = {"generator": self.generator, "options": json.dumps(self.options), "seed": seed}
        return [
            "--task=dirl.tasks.ReasoningGym",
            *(f"--task.init_args.{name}={value}" for name, value in named.items()),
        ]

    def limits(self, seed: int) -> Limits:
        task = ReasoningGym(self.generator, self.options, seed)
        solved = [row["messages"] for split in ("train", "val") for row in task.conversations(split)]
        questions = [asked["content"] for asked, _ in solved]
        questions += [row["question"] for split in ("train", "val") for row in task.rows(split)]
        answers = [answer["content"] for _, answer in solved]
        letters = sorted(set("".join(questions)) | set("".join(answers)))
        return Limits(
            "".join(letters), blocks(max(map(len, questions)) + CHAT_TOKENS), blocks(max(map(len, answers)) + 1)
        )


def blocks(tokens: int) -> int:
    """The same in whole blocks."""
    return -(-tokens // BLOCK) * BLOCK
