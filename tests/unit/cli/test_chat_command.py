"""The command `chat` with scripted input: answers, slash commands, errors, what is seen while a block is denoised."""

import io
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from tests.tiny import TinyModel

from dirl.cli.chat.command import Chat, device_of
from dirl.cli.chat.conversation import Answer, Conversation, InterruptedAnswer, Words
from dirl.cli.chat.display import LiveDisplay, PlainDisplay
from dirl.cli.chat.slash import ABOUT, obey
from dirl.cli.commands import load_engine
from dirl.cli.errors import entry
from dirl.models.export import save_model
from dirl.rollout import TorchEngine
from dirl.rollout.torch.active import Partial
from dirl.types import DecodingParams, GenerationRequest

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = DecodingParams(temperature=0.0, max_response_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    source = TinyModel()
    description = source.describe()
    save_model(folder, source.build(description.config), description.tokenizer)
    return folder


@pytest.fixture
def conversation() -> Conversation:
    engine = TorchEngine(max_batch_size=1, device="cpu")
    return Conversation(engine, load_engine(engine, TinyModel()), GREEDY)


def nothing(*_: object) -> None: ...


def piped(lines: Sequence[str], monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """`dirl chat` with these lines as its input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return entry(["chat", *map(str, args)])


def test_answers_go_to_the_output_and_all_else_to_stderr(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    options = ("--decoding.max_response_tokens=12", "--decoding.temperature=0")
    assert piped(["1+2=", "/reset", "1+2=", "/quit", "3+4="], monkeypatch, "--model", model, *options) == 0
    said = capfd.readouterr()
    first, second = said.out.splitlines()
    assert first == second, "a new conversation with the same question"
    assert "block size 4; strategy low_confidence_dynamic" in said.err and "a new conversation" in said.err
    assert said.err.count("denoising steps:") == 2


def test_an_error_is_one_line_and_the_chat_goes_on(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    lines = ["hello?", "/threshold 3", "/threshold much", "/nope", "1+2="]
    assert piped(lines, monkeypatch, "--model", model, "--decoding.max_response_tokens=4") == 1
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and len(said.out.splitlines()) == 1
    assert "the tokenizer has no token for ['?', 'e', 'h', 'l', 'o']" in errors[0]
    assert errors[1] == "error: decoding.threshold=3.0: use a probability in (0, 1]"
    assert errors[2] == "error: /threshold much: give a number"
    assert errors[3].startswith("error: /nope is no command; there are /strategy, /threshold,")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "model"),
        (("--model", "./nowhere"), "no such folder"),
        (("--model", "MODEL", "--device", "gpu"), "device='gpu' is none: use auto, cpu, cuda or cuda:1"),
        (("--model", "MODEL", "--decoding.threshold", "7"), "use a probability in (0, 1]"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_question(
    args: tuple, message: str, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    assert piped(["1+2="], monkeypatch, *(model if arg == "MODEL" else arg for arg in args)) != 0
    said = capfd.readouterr()
    assert message in said.err and "Traceback" not in said.err and said.out == ""


def test_earlier_turns_are_part_of_the_prompt(conversation: Conversation) -> None:
    asked: list[GenerationRequest] = []
    generate = conversation.engine.generate
    conversation.engine.generate = lambda requests, decoding: asked.extend(requests) or generate(requests, decoding)
    first = conversation.ask("1+2=", nothing, nothing)
    conversation.ask("3+4=", nothing, nothing)
    tokenizer = conversation.description.tokenizer
    texts = [tokenizer.decode(list(request.prompt_ids)) for request in asked]
    assert texts[1].startswith(texts[0] + first.text) and "3+4=" in texts[1]
    assert asked[0].seed != asked[1].seed
    conversation.history = False
    conversation.ask("1+2=", nothing, nothing)
    assert asked[2].prompt_ids == asked[0].prompt_ids
    conversation.reset()
    conversation.ask("1+2=", nothing, nothing)
    assert asked[3] == asked[0], "and the same seed"


def test_each_denoising_step_is_shown_and_ends_in_the_answer(conversation: Conversation) -> None:
    seen: list[Words] = []
    answer = conversation.ask("1+2=", seen.append, nothing)
    assert answer.text.startswith(seen[-1].done) and len(seen[-1].text) >= len(answer.text) - 1
    steps = int(answer.note.split(" denoising steps")[0].split()[-1])
    assert len(seen) == steps > 3
    assert any(words.unfinished for words in seen), "masks are seen"
    for before, after in pairwise(seen):
        assert after.text.startswith(before.done)


@pytest.mark.parametrize(
    ("done", "block", "words"),
    [
        ("", "1__2", Words("1", "", (2, "2"))),
        ("", "_1_2+_", Words("", "", (1, "1", 1, "2+", 1))),
        ("", "____", Words("", "", (4,))),
        ("0123", "4_+_", Words("01234", "0123", (1,))),
        ("0123", "12", Words("012312", "0123")),
        ("01.3", "", Words("01", "01")),
        ("0123", "4.__", Words("01234", "0123")),
        ("0123", "_.+_", Words("0123", "0123", (1,))),
        ("0123", "4321", Words("012343", "0123")),
    ],
)
def test_words_end_at_the_stop_token_and_the_limit(
    conversation: Conversation, done: str, block: str, words: Words
) -> None:
    tokenizer, stop = conversation.description.tokenizer, conversation.description.spec.stop_token_ids[0]

    def ids(text: str) -> tuple[int | None, ...]:
        known: dict[str, int | None] = {"_": None, ".": stop}
        return tuple(known[c] if c in known else tokenizer.convert_tokens_to_ids(c) for c in text)

    partial = Partial(GenerationRequest("chat", 0, (), 0), ids(done), ids(block))
    assert conversation._words(partial, 6) == words


def test_a_stopped_answer_is_kept_as_far_as_it_was(conversation: Conversation) -> None:
    seen: list[Words] = []

    def enough() -> None:
        if len(seen) == 4:
            raise InterruptedAnswer

    answer = conversation.ask("1+2=", seen.append, enough)
    assert answer.interrupted and answer.note == "stopped after 4 denoising steps" and answer.text == seen[-1].text
    assert conversation.messages[1:] in ([], [{"role": "assistant", "content": answer.text}])
    assert not conversation.ask("1+2=", nothing, nothing).interrupted, "the engine goes on"


def test_an_answer_has_the_room_that_the_model_has_positions_for(conversation: Conversation) -> None:
    conversation.description.config.max_position_embeddings = 18
    answer = conversation.ask("1+2=", nothing, nothing)
    assert answer.note.startswith("9 tokens"), "16 positions in whole blocks, 7 of which are the prompt's"
    with pytest.raises(ValueError, match=r"has \d+ tokens, and the model has max_position_embeddings=18: .*/reset"):
        conversation.ask("0123401234", nothing, nothing)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/threshold 0.5", "threshold", 0.5),
        ("/strategy static", "strategy", "low_confidence_static"),
        ("/strategy sequential", "strategy", "sequential"),
        ("/steps 2", "denoising_steps", 2),
        ("/steps null", "denoising_steps", None),
        ("/temperature 1", "temperature", 1.0),
        ("/top_k 5", "top_k", 5),
        ("/top_p 0.9", "top_p", 0.9),
        ("/max 7", "max_response_tokens", 7),
    ],
)
def test_slash_commands_set_how_a_block_is_denoised(
    conversation: Conversation, line: str, field: str, value: object
) -> None:
    assert obey(line, conversation)
    assert getattr(conversation.decoding, field) == value


def test_other_slash_commands(conversation: Conversation) -> None:
    assert all(f"/{name}" in obey("/help", conversation) for name in ABOUT)
    assert "threshold 0.9" in obey("/threshold", conversation) == obey("/settings", conversation)
    assert obey("/seed 7", conversation) == "seed 7" and conversation.seed == 7
    assert obey("/history off", conversation) == "history off" and not conversation.history
    conversation.messages = [{"role": "user", "content": "1"}]
    assert obey("/system 0123", conversation) == "a new conversation, with this system prompt"
    assert conversation.system_prompt == "0123" and conversation.messages == []
    assert obey("/system", conversation).endswith("without a system prompt")
    assert obey("/quit", conversation) is obey("/q", conversation) is None
    for line, message in {"/history": "use on or off", "/seed x": "give a whole number", "/": "is no command"}.items():
        with pytest.raises(ValueError, match=message):
            obey(line, conversation)


def test_off_a_terminal_text_comes_with_each_finished_block() -> None:
    out = io.StringIO()
    display = PlainDisplay(out)
    display.begin()
    for words in (Words("ab", "", (2,)), Words("abcd", "abcd"), Words("abcde", "abcd\ufffd", (3,))):
        display.show(words)
    assert out.getvalue() == "abcd"
    display.end(Answer("abcd é!", "note"))
    assert out.getvalue() == "abcd é!\n"


def test_on_a_terminal_masks_are_seen_where_they_are_filled() -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=40, height=10, color_system=None))
    display.begin()
    display.show(Words("one\ntw", "one\n", (1, "o", 2)))
    assert "one\n" in out.getvalue() and "tw▒o▒▒" in out.getvalue()
    display.show(Words("one\ntwo\x1b[2J", "one\n"))
    display.end(Answer("one\ntwo\x1b[2J", "a note"))
    text = out.getvalue()
    assert text.rstrip().endswith("two\\x1b[2J\na note") and "\x1b[2J" not in text
    assert text.count("one") == 1, "a line that is whole is printed once"


def test_a_line_longer_than_the_terminal_shows_its_end() -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=10, height=5, color_system=None))
    display.begin()
    display.show(Words("a" * 95 + "END", "", (2,)))
    assert "END▒▒" in out.getvalue() and out.getvalue().count("a") < 40
    display.abandon()


def test_interrupts_end_an_answer_then_the_chat(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a script
    chat = Chat(conversation, PlainDisplay(io.StringIO()))
    lines = iter(["1+2=", KeyboardInterrupt, "/reset", KeyboardInterrupt, KeyboardInterrupt])

    def scripted(prompt: str) -> str:
        line = next(lines)
        if line is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        assert isinstance(line, str)
        return line

    monkeypatch.setattr("builtins.input", scripted)
    with pytest.raises(KeyboardInterrupt):
        chat.run()
    assert next(lines, None) is None, "a line between two of them: they are not two in a row"
    assert signal.getsignal(signal.SIGINT) is before
    chat.answering = True
    chat._on_interrupt(signal.SIGINT, None)
    with pytest.raises(InterruptedAnswer):
        chat._still_wanted()
    with pytest.raises(KeyboardInterrupt):
        chat._on_interrupt(signal.SIGINT, None)


def test_lines_that_end_in_a_backslash_go_on(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    chat = Chat(conversation, PlainDisplay(io.StringIO()))
    monkeypatch.setattr(chat, "_ask", asked.append)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+\\\n2=\n\n  \n3\\\n"))
    assert chat.run() == 0
    assert asked == ["1+\n2=", "3"]


def test_devices() -> None:
    assert device_of("cpu") == "cpu" and device_of("auto") in ("cpu", "cuda")
