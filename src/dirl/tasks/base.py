"""The contract of tasks: what to learn from and to be evaluated on, and what is a correct answer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from dirl.reading.prompts import PromptEncoder
from dirl.rewards import Reward
from dirl.types import Prompt

Split = Literal["train", "val"]


class Task(ABC):
    """What a model learns: RL and evaluations ask for prompts and rewards, SFT for conversations.

    It gives the prompts of a split, by handing rows to `encode`, which puts each question into the chat template of the
    model (`encode.description` has its tokenizer), keeps to the run's limits and counts what it leaves out. A row has a
    question (a text, or a list of messages) and a truth, which a reward compares the response with; all its other
    columns reach the rewards as `info`. The rows of a split are the same whenever they are asked for.

        class Doubles(Task):
            def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
                numbers = range(100) if split == "train" else range(100, 120)
                return encode([{"question": f"2*{n}", "ground_truth_answer": str(2 * n)} for n in numbers])

            def rewards(self) -> list[Reward]:
                return [ExactAnswer()]

    A subclass is chosen by `task: {class_path: ..., init_args: ...}`; what its constructor takes are its options.
    """

    evaluator: ClassVar[Literal["dirl", "lm_eval"]] = "dirl"
    """Who asks and judges in `evaluate`: this package by prompts and rewards, or lm-evaluation-harness by its own."""

    @abstractmethod
    def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
        """All prompts of a split, in an order that stays; for `val` an empty list: there is nothing to evaluate on."""

    def rewards(self) -> list[Reward]:
        """What scores a response where no other rewards are given; none: they must be given."""
        return []

    def conversations(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """Rows with solved questions for SFT, as `{"messages": [...]}`; none: the task has no solutions.

        Those of `train` hold no question of the prompts of `val`; those of `val` are for the validation of SFT.
        """
        return []

    def origin(self, split: Split) -> str:
        """Where the rows of a split are from, in words, for messages."""
        return f"task {type(self).__name__}, {split}"
