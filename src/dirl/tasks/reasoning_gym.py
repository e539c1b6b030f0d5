"""Task: any generator of reasoning-gym, with its own scorer; nothing is downloaded."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from dirl.reading.prompt_template import check_template, fill
from dirl.reading.prompts import PromptEncoder
from dirl.rewards import ReasoningGym as Solved
from dirl.rewards import Reward
from dirl.rewards.reasoning_gym import INFO, Entry, dataset_of, load, options_key
from dirl.tasks.base import Split, Task
from dirl.tasks.generated import boxed, conversation
from dirl.types import Prompt

APART = 1_000_000
"""Between the seeds of two uses: generators draw question i by seed + i."""
T = TypeVar("T")

SPARE = 2
"""Questions that are drawn for each one that is wanted, as some of them repeat."""


class ReasoningGym(Task):
    r"""Questions of one generator, e.g. `chain_sum`, `gcd`, `spell_backward`; the package has a hundred.

    Prompts of `train` and `val` are distinct questions, and none of `val` is among those of `train` or of SFT. The
    answer is expected in `\boxed{}`, as SFT's solutions have it: a model that was not trained on the task must be told
    so by the template.

    Args:
        generator: its name in reasoning-gym.
        options: of the generator, e.g. `{min_terms: 2, max_terms: 2, max_digits: 2}`.
        seed: of the questions.
        train_prompts: how many, of RL.
        val_prompts: how many, of evaluations.
        solutions: questions with their answers, for SFT; they may repeat.
        val_solutions: the same for SFT's validation.
        prompt_template: what is asked, with `{question}` in it. None: the question alone.

    Raises:
        ValueError: reasoning-gym is not installed, or has no such generator or option.
    """

    def __init__(
        self,
        generator: str,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        train_prompts: int = 2000,
        val_prompts: int = 200,
        solutions: int = 20_000,
        val_solutions: int = 256,
        prompt_template: str | None = None,
    ) -> None:
        counts = {"train_prompts": train_prompts, "val_prompts": val_prompts}
        counts |= {"solutions": solutions, "val_solutions": val_solutions}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"task.{name}={value}: use at least 1")
        check_template(prompt_template)
        for name in {"seed", "size"} & set(options or {}):
            raise ValueError(f"task.options has {name!r}: that is of this task, use task.seed and task.train_prompts")
        self.generator, self.options, self.seed = generator, dict(options or {}), seed
        self.counts, self.prompt_template = counts, prompt_template
        load()
        dataset_of(generator, options_key(self.options), 0, 1)  # of a wrong name or option now, not after the model

    def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
        return encode(self.rows(split), template=self.prompt_template, name=self.origin(split))

    def rewards(self) -> list[Reward]:
        return [Solved()]

    def conversations(self, split: Split) -> Sequence[Mapping[str, Any]]:
        use = "solutions" if split == "train" else "val_solutions"
        held_out = {row["question"] for row in self.rows("val")}
        asked = (entry for _, entry in self._drawn(use) if entry["question"] not in held_out)
        return [
            conversation(fill(self.prompt_template, entry["question"]), boxed(self._answer(entry)))
            for entry in self._first(asked, use)
        ]

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """`{"question", "ground_truth_answer"}` of the split's questions, and which ones they are for the reward."""
        use = f"{split}_prompts"
        seen = {row["question"] for row in self.rows("val")} if split == "train" else set()
        return self._first(self._distinct(use, seen), use)

    def _distinct(self, use: str, seen: set[str]) -> Iterator[dict[str, Any]]:
        for entry, drawn in self._drawn(use):
            if drawn["question"] not in seen:
                seen.add(drawn["question"])
                info = vars(entry) | {"options": self.options}
                # generators with many right answers may show none
                yield {"question": drawn["question"], "ground_truth_answer": str(drawn["answer"]), INFO: info}

    def _drawn(self, use: str) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """Questions with a random stream of their own for each use."""
        seed = (self.seed * len(self.counts) + list(self.counts).index(use)) * APART % 2**32
        options, size = options_key(self.options), SPARE * self.counts[use] + 100
        dataset = dataset_of(self.generator, options, seed, size)
        for index in range(size):
            yield Entry(self.generator, options, seed, size, index), dataset[index]

    def _first(self, drawn: Iterator[T], use: str) -> list[T]:
        wanted = self.counts[use]
        rows = list(islice(drawn, wanted))
        if len(rows) < wanted:
            raise ValueError(
                f"task.{use}={wanted}: generator {self.generator!r} with options={self.options} gave {len(rows)} other "
                f"questions among {SPARE * wanted + 100}: ask for fewer, or give options with more variety"
            )
        return rows

    def _answer(self, entry: Mapping[str, Any]) -> str:
        if not isinstance(entry["answer"], str):
            raise ValueError(
                f"generator {self.generator!r} shows no answer to {entry['question'][:80]!r}: SFT has nothing to learn"
            )
        return entry["answer"]

    def origin(self, split: Split) -> str:
        return f"reasoning-gym's {self.generator}, {split}"
