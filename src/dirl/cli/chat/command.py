"""`lightning run chat`: the loop of questions and answers."""

import importlib.util
import sys
from types import FrameType
from typing import Literal

import torch

from dirl.cli.chat.conversation import Conversation, InterruptedAnswer
from dirl.cli.chat.display import Display, LiveDisplay, display_for_here
from dirl.cli.chat.slash import obey, settings
from dirl.cli.commands import load_engine
from dirl.errors import ForUserError
from dirl.models import PretrainedModel
from dirl.rollout import TorchEngine
from dirl.stopping import request
from dirl.types import DecodingParams


def chat(
    model: str,
    decoding: DecodingParams = DecodingParams(temperature=0.0, max_response_tokens=1024),
    system_prompt: str | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    block_size: int | None = None,
    seed: int = 0,
    history: bool = True,
) -> int:
    """Talk with a model in the terminal: answers appear as they are denoised.

    Lines are questions, those with a slash are commands: /help lists them. A line that ends in a backslash goes on in
    the next. Ctrl-C stops an answer, twice ends. Off a terminal, questions are read from the input, and answers are
    written as text.

    Args:
        model: folder, hub name or checkpoint.
        decoding: how to sample; changed by slash commands.
        system_prompt: put before the conversation.
        device: that the model runs on; auto: CUDA where there is one.
        dtype: of the weights; auto: as they are stored.
        block_size: where the model's config has none.
        seed: of the draws.
        history: earlier turns are part of what the model reads; false: each question stands alone.
    """
    engine = TorchEngine(max_batch_size=1, device=device_of(device), dtype=dtype)
    description = load_engine(engine, PretrainedModel(model, block_size=block_size, dtype=dtype))
    conversation = Conversation(engine, description, decoding, system_prompt, seed, history)
    display = display_for_here()
    display.note(f"{model} on {engine.device}, block size {description.spec.block_size}; {settings(conversation)}")
    display.note("/help lists the commands")
    return Chat(conversation, display).run()


def device_of(name: str) -> str:
    """The device by that name; ValueError for what is no device here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is none: use auto, cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: no GPU is found by this torch ({torch.__version__}); use cpu, or auto")
    return name


class Chat:
    """The loop of a chat, which reads lines until they end."""

    def __init__(self, conversation: Conversation, display: Display) -> None:
        self.conversation, self.display = conversation, display
        self.prompt = "› " if isinstance(display, LiveDisplay) else ""
        self.answering = self.stop_asked = self.interrupted = False
        self.failed = 0
        """Lines that ended in an error."""

    def run(self) -> int:
        """The exit code: 1 where input that was no terminal's held a line that ended in an error."""
        if self.prompt and importlib.util.find_spec("readline"):
            import readline  # noqa: F401 - `input` edits lines by it, and knows those before
        with request.interrupts_by(self._on_interrupt):
            while (line := self._read()) is not None:
                self.interrupted = False
                if line.strip() and not self._take(line.strip()):
                    break
        return int(self.failed > 0 and not self.prompt)

    def _take(self, line: str) -> bool:
        """Answer a question or obey a command, and say whether the chat goes on."""
        try:
            if not line.startswith("/"):
                self._ask(line)
                return True
            said = obey(line, self.conversation)
        except (ValueError, ForUserError) as error:
            self.display.abandon()
            self.failed += 1
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            return True
        if said is not None:
            self.display.note(said)
        return said is not None

    def _ask(self, question: str) -> None:
        self.answering, self.stop_asked = True, False
        self.display.begin()
        try:
            answer = self.conversation.ask(question, self.display.show, self._still_wanted)
        except BaseException:
            self.display.abandon()
            raise
        finally:
            self.answering = False
        self.display.end(answer)
        self.interrupted = answer.interrupted

    def _read(self) -> str | None:
        """The next question, of as many lines as end in a backslash and one; None: there is none."""
        lines: list[str] = []
        while True:
            try:
                lines.append(input("… " if lines and self.prompt else self.prompt))
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if self.interrupted:
                    raise
                self.interrupted, lines = True, []
                self.display.note("\nCtrl-C again ends")
                continue
            if not lines[-1].endswith("\\"):
                return "\n".join(lines)
            lines[-1] = lines[-1][:-1]

    def _still_wanted(self) -> None:
        if self.stop_asked:
            raise InterruptedAnswer

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        """The first one while the model answers ends the answer, at the next forward; any other is Python's own."""
        if self.answering and not self.stop_asked:
            self.stop_asked = True
        else:
            raise KeyboardInterrupt
