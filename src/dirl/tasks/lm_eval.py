"""Task: tasks of lm-evaluation-harness, which asks, cuts and judges; the command `evaluate` runs them."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from dirl.reading.prompts import PromptEncoder
from dirl.tasks.base import Split, Task
from dirl.types import Prompt

DECIDED = ("max_gen_toks", "temperature", "top_p", "top_k", "min_p", "do_sample", "until")
"""Names in `generation_kwargs` that are obeyed."""


class LMEval(Task):
    """Generation tasks of lm-evaluation-harness: its prompts, few-shot examples, filters and metrics.

    `lightning run evaluate --task lm_eval:NAME,NAME` is short for this class with these names.

    Args:
        names: of tasks, groups or tags, as `lm_eval ls tasks` lists them, or of those in `include_path`.
        include_path: folder of task files of one's own (YAML).
        num_fewshot: examples before each question; None: as many as the task says.
        chat_template: prompts are conversations in the model's chat template; None: where the model has one.
        fewshot_as_multiturn: examples are turns of the conversation, else one text in its only question.
        system_prompt: put before every question.
        generation_kwargs: in place of what the tasks say, e.g. `{max_gen_toks: 512, temperature: 0.5}`.

    Raises:
        ValueError: lm_eval is not installed, or no name is given.
    """

    evaluator: ClassVar[Literal["dirl", "lm_eval"]] = "lm_eval"

    def __init__(
        self,
        names: str | list[str],
        include_path: str | list[str] | None = None,
        num_fewshot: int | None = None,
        chat_template: bool | None = None,
        fewshot_as_multiturn: bool = True,
        system_prompt: str | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> None:
        listed = names.split(",") if isinstance(names, str) else names
        self.names = [name.strip() for name in listed if name.strip()]
        if not self.names:
            raise ValueError(f"task.names={names!r}: name a task of lm-evaluation-harness, e.g. --task lm_eval:gsm8k")
        if num_fewshot is not None and num_fewshot < 0:
            raise ValueError(f"task.num_fewshot={num_fewshot}: use 0 or more, or null for as many as the task says")
        self.include_path = [include_path] if isinstance(include_path, str) else include_path
        self.num_fewshot, self.chat_template, self.system_prompt = num_fewshot, chat_template, system_prompt
        self.fewshot_as_multiturn = fewshot_as_multiturn
        self.generation_kwargs = dict(generation_kwargs or {})
        for name in self.generation_kwargs:
            if name not in DECIDED:
                raise ValueError(
                    f"task.generation_kwargs has {name!r}, which no engine obeys: use any of {', '.join(DECIDED)}; how "
                    "blocks are denoised is said by decoding"
                )
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError("lm_eval (lm-evaluation-harness) is not installed: pip install 'dirl[lm-eval]'")

    def prompts(self, split: Split, encode: PromptEncoder) -> list[Prompt]:
        raise ValueError(self._refusal())

    def conversations(self, split: Split) -> Sequence[Mapping[str, Any]]:
        raise ValueError(self._refusal())

    def origin(self, split: Split) -> str:
        return f"lm-evaluation-harness' {', '.join(self.names)}"

    def _refusal(self) -> str:
        return (
            f"task=lm_eval:{','.join(self.names)}: the tasks of lm-evaluation-harness are for `lightning run evaluate` "
            "alone, as its one task: they ask and judge by themselves; name a task of dirl.tasks here"
        )
