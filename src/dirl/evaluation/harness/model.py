"""The model that lm-evaluation-harness sees: an engine of this package behind its class LM."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lm_eval.api.model import LM

from dirl.evaluation.harness.decoding import cut, decoding_of, stop_sequences
from dirl.evaluation.harness.loading import REFUSED
from dirl.models import ModelDescription
from dirl.models.special_tokens import render_chat
from dirl.reading.chat import encode_text
from dirl.reading.control_tokens import mark, unmark
from dirl.reading.encoding import check_ids
from dirl.rollout.response import response_text
from dirl.types import DecodingParams, Prompt, Trajectory


@dataclass(frozen=True)
class Asked:
    """All that a task asks with the same settings."""

    task: str
    decoding: DecodingParams
    samples: int
    """Responses per prompt: the task's `repeats`."""
    prompts: list[Prompt]


@dataclass
class Answers:
    """The responses to one task, by prompt id."""

    asked: list[Asked] = field(default_factory=list)
    until: dict[str, list[str]] = field(default_factory=dict)
    trajectories: dict[str, list[Trajectory]] = field(default_factory=dict)

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for asked in self.asked for prompt in asked.prompts]


class EngineLM(LM):
    """Answers by `answer`; refuses all else.

    Args:
        description: of the model.
        base: how blocks are denoised; temperature and length are each task's.
        answer: responses to all that is asked, by prompt id, `samples` to each.
    """

    def __init__(
        self,
        description: ModelDescription,
        base: DecodingParams,
        answer: Callable[[Asked], Mapping[str, list[Trajectory]]],
        check: Callable[[list[Asked]], None] = lambda asked: None,
    ) -> None:
        super().__init__()
        self.description, self.base, self.answer, self.check = description, base, answer, check
        self.answers: dict[str, Answers] = defaultdict(Answers)
        """The responses to each task, by its name."""

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The response to each request, up to its first stop sequence; a prompt stands there once for each repeat."""
        keys = [self._id(request) for request in requests]
        asked = self._asked(dict(zip(keys, requests, strict=True)), keys)
        self.check(asked)
        for one in asked:
            found = self.answers[one.task]
            found.asked.append(one)
            found.trajectories |= self.answer(one)
        place: dict[tuple[str, str], int] = defaultdict(int)
        texts = []
        for task, prompt_id in keys:
            made = self.answers[task].trajectories[prompt_id][place[task, prompt_id]]
            place[task, prompt_id] += 1
            texts.append(self.text(task, made))
        return texts

    def text(self, task: str, trajectory: Trajectory) -> str:
        """The text of a response, cut at the task's stop sequences."""
        said = response_text(trajectory, self.description.tokenizer)
        return cut(said, self.answers[task].until[trajectory.prompt_id])

    def was_cut(self, task: str, trajectory: Trajectory) -> bool:
        return self.text(task, trajectory) != response_text(trajectory, self.description.tokenizer)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        raise ValueError(f"lm_eval:{requests[0].task_name} asks for log-likelihoods, and {REFUSED}")

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> NoReturn:
        self.loglikelihood(requests)

    @property
    def tokenizer_name(self) -> str:
        return str(self.description.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.description.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """What was typed of control tokens in it is marked, as in all prompts; without the generation prompt the last
        message, which the task has begun to answer, goes on."""
        tokenizer = self.description.tokenizer
        messages = mark(tokenizer, chat_history, "lm_eval")
        if add_generation_prompt:
            return render_chat(tokenizer, messages, True, None, "lm_eval")
        turns = [dict(message) for message in messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
        assert isinstance(text, str)
        return text

    def _asked(self, requests: Mapping[tuple[str, str], Any], keys: list[tuple[str, str]]) -> list[Asked]:
        found: dict[tuple[str, DecodingParams, int], list[Prompt]] = {}
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for key in keys:
            counts[key] += 1
        for (task, prompt_id), request in requests.items():
            context, kwargs = request.args
            self.answers[task].until[prompt_id] = stop_sequences(kwargs)
            group = task, decoding_of(self.base, kwargs), counts[task, prompt_id]
            found.setdefault(group, []).append(self._prompt(task, prompt_id, context))
        return [Asked(*group, prompts) for group, prompts in found.items()]

    def _prompt(self, task: str, prompt_id: str, context: str) -> Prompt:
        where, tokenizer = f"lm_eval:{task}, problem {prompt_id}", self.description.tokenizer
        ids = encode_text(tokenizer, context, where)
        check_ids(ids, self.description.spec.banned, tokenizer, where)
        if not ids:
            raise ValueError(f"{where}: its prompt is empty, so there is nothing to answer; mend the task")
        return Prompt(prompt_id, tuple(ids), unmark(context), "")

    @staticmethod
    def _id(request: Any) -> tuple[str, str]:
        """Task, and number of the problem; behind a dot that of the request, where a problem makes several."""
        return request.task_name, f"{request.doc_id}.{request.idx}" if request.idx else str(request.doc_id)
