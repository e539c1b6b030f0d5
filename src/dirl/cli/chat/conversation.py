"""A conversation with a model: the turns so far, and the next answer, denoising step by denoising step."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dirl.models import ModelDescription
from dirl.reading.chat import encode_prompt
from dirl.rollout import TorchEngine
from dirl.rollout.response import response_text
from dirl.rollout.torch.active import Partial
from dirl.seeds import derived_seed
from dirl.types import DecodingParams, GenerationRequest, Trajectory


class InterruptedAnswer(Exception):
    """Raised to end an answer of which somebody has seen enough."""


@dataclass(frozen=True)
class Words:
    """What of an answer is known so far."""

    text: str
    """The text of all tokens in front of the first masked one."""
    done: str
    """The part of it in finished blocks, to which nothing is added but at its end."""
    unfinished: tuple[str | int, ...] = ()
    """What stands behind it in the block under way: texts, and numbers of masked tokens."""


@dataclass(frozen=True)
class Answer:
    text: str
    note: str
    """How it was made, in a line."""
    interrupted: bool = False


class Conversation:
    """Asks an engine; answers become part of what the model reads the next time.

    Args:
        seed: of the draws; each turn has its own.
        history: earlier turns are part of what the model reads.
    """

    def __init__(
        self,
        engine: TorchEngine,
        description: ModelDescription,
        decoding: DecodingParams,
        system_prompt: str | None = None,
        seed: int = 0,
        history: bool = True,
    ) -> None:
        self.engine, self.description, self.decoding = engine, description, decoding
        self.system_prompt, self.seed, self.history = system_prompt, seed, history
        self.messages: list[dict[str, str]] = []
        self.turns = 0

    def reset(self) -> None:
        self.messages, self.turns = [], 0

    def ask(self, question: str, show: Callable[[Words], None], still_wanted: Callable[[], None]) -> Answer:
        """The answer, of which `show` is told after each denoising step.

        Args:
            still_wanted: called between two forwards; InterruptedAnswer, which it may raise, ends the answer early.

        Raises:
            ValueError: the question cannot be encoded, or there is no room for an answer; nothing has changed then.
        """
        asked = [*(self.messages if self.history else []), {"role": "user", "content": question}]
        ids = encode_prompt(self.description.tokenizer, asked, self.system_prompt, where="question")
        decoding = self._within_room(len(ids))
        request = GenerationRequest("chat", 0, tuple(ids), derived_seed(self.seed, self.turns))
        answer = self._generate(request, decoding, show, still_wanted)
        self.turns += 1
        if answer.text.strip() or not answer.interrupted:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer

    def _within_room(self, prompt_tokens: int) -> DecodingParams:
        """The settings, with no more tokens than the model has positions for."""
        most = getattr(self.description.config, "max_position_embeddings", None)
        if most is None:
            return self.decoding
        size = self.description.spec.block_size
        room = most // size * size - prompt_tokens
        if room < 1:
            raise ValueError(
                f"the conversation has {prompt_tokens} tokens, and the model has max_position_embeddings={most}: "
                "no answer fits; /reset begins anew"
            )
        return replace(self.decoding, max_response_tokens=min(room, self.decoding.max_response_tokens))

    def _generate(
        self,
        request: GenerationRequest,
        decoding: DecodingParams,
        show: Callable[[Words], None],
        still_wanted: Callable[[], None],
    ) -> Answer:
        steps, last, started = 0, Words("", ""), time.perf_counter()

        def watch(partials: Sequence[Partial]) -> None:
            nonlocal steps, last
            steps, last = steps + 1, self._words(partials[0], decoding.max_response_tokens)
            show(last)

        self.engine.watch, self.engine.still_wanted = watch, still_wanted
        try:
            (trajectory,) = self.engine.generate([request], decoding)
        except InterruptedAnswer:
            return Answer(last.text, f"stopped after {steps} denoising steps", interrupted=True)
        finally:
            self.engine.watch, self.engine.still_wanted = None, lambda: None
        text = response_text(trajectory, self.description.tokenizer)
        return Answer(text, note_of(trajectory, steps, time.perf_counter() - started))

    def _words(self, partial: Partial, limit: int) -> Words:
        """Up to the stop token, or the limit: what stands behind it is no part of the answer."""
        ids = [*partial.done, *partial.block][:limit]
        stops = self.description.spec.stop_token_ids
        end = next((k for k, token in enumerate(ids) if token in stops), len(ids))
        ids = ids[:end]
        known = next((k for k, token in enumerate(ids) if token is None), len(ids))
        done = [token for token in ids[: min(known, len(partial.done))] if token is not None]
        first = [token for token in ids[:known] if token is not None]
        return Words(self._decode(first), self._decode(done), tuple(self._pieces(ids[known:])))

    def _pieces(self, ids: list[int | None]) -> list[str | int]:
        found: list[str | int] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None:
                run.append(token)
                continue
            if run:
                found.append(self._decode(run))
                run = []
            if found and isinstance(found[-1], int):
                found[-1] += 1
            else:
                found.append(1)
        last = found.pop()  # with the one that was put behind the end
        assert isinstance(last, int), "the last one is masked"
        return [*found, last - 1] if last > 1 else found

    def _decode(self, ids: list[int]) -> str:
        text = self.description.tokenizer.decode(ids, skip_special_tokens=False)
        assert isinstance(text, str)
        return text


def note_of(trajectory: Trajectory, steps: int, seconds: float) -> str:
    tokens = trajectory.response_length
    cut = "; ended by the length limit, see /max" if trajectory.finish_reason == "length" else ""
    speed = f"{tokens / steps:.2f} tokens a step, {tokens / seconds:.0f} tokens/s"
    return f"{tokens} tokens in {steps} denoising steps: {speed}{cut}"
