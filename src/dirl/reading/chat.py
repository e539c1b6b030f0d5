"""Conversations to token ids, by the tokenizer's own chat template, with the assistant's tokens marked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dirl.models.special_tokens import END_TOKENS, MASK_TOKENS, find_token, render_chat
from dirl.packing.pieces import Encoded
from dirl.reading.control_tokens import mark, pieces, unmark

Message = Mapping[str, Any]
"""`role` and `content`, see `dirl.reading.schemas`."""
Turns = Literal["all", "last"]

EMPTY_THOUGHTS = re.compile(r"\s*<think>\s*</think>\s*")
"""What templates like Qwen3's write before an answer without thoughts, where the prompt does not."""


class RewrittenHistoryError(ValueError):
    """The chat template shows an answer otherwise within the conversation than when it is given."""


@dataclass
class FitCounts:
    """What became of the rows of a source, for callers to log."""

    kept: int = 0
    cut: int = 0
    dropped: int = 0
    """Conversations that are left out for their length."""
    bad: int = 0
    """Rows with an error, where `on_bad_row` is skip."""
    without_truth: int = 0
    """Prompts whose truth is null."""

    @property
    def left_out(self) -> bool:
        """Whether any row is not used as it is."""
        return bool(self.cut or self.dropped or self.bad or self.without_truth)

    def __str__(self) -> str:
        text = f"{self.kept} within the length limit, {self.cut} cut, {self.dropped} dropped"
        text += f", {self.bad} bad rows skipped" if self.bad else ""
        return text + (f", {self.without_truth} without a truth skipped" if self.without_truth else "")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str | Sequence[Message],
    system_prompt: str | None = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    where: str = "prompt",
) -> list[int]:
    """The ids that a response follows: the question in the chat template, with its generation prompt."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    if system_prompt is not None:
        if messages[0]["role"] == "system":
            raise ValueError(
                f"{where}: has a system message, and system_prompt={system_prompt!r} is set; remove one of them"
            )
        messages = [{"role": "system", "content": system_prompt}, *messages]
    _check_contents(tokenizer, messages, (), where)
    messages = mark(tokenizer, messages, where)
    return encode_text(tokenizer, render_chat(tokenizer, messages, True, chat_template_kwargs, where), where)


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    stop_token_ids: Sequence[int],
    *,
    turns: Turns = "all",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    where: str = "conversation",
) -> list[Encoded]:
    """A conversation as one example or, where the template rewrites answers that others follow, one for each answer.

    Qwen3's leaves thoughts out of earlier answers, for example: an answer with them is trained behind the prompt that
    it follows at inference.
    """
    options: dict[str, Any] = {"chat_template_kwargs": chat_template_kwargs, "where": where}
    try:
        return [encode_conversation(tokenizer, messages, stop_token_ids, turns=turns, **options)]
    except RewrittenHistoryError:
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if turns == "last" or len(answers) < 2:
            raise
    parts = (messages[: index + 1] for index in answers)
    return [encode_conversation(tokenizer, part, stop_token_ids, turns="last", **options) for part in parts]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    stop_token_ids: Sequence[int],
    *,
    turns: Turns = "all",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    where: str = "conversation",
) -> Encoded:
    """The conversation as the template renders it as a whole, with the assistant's tokens marked.

    Prompt and answer are tokenised apart, as at inference, so `encode_prompt` of the messages before the
    first trained answer gives a prefix of these ids. What the template writes after an answer's end token
    is context for later turns; after the last one it is left out. So is an empty block of thoughts that the template
    writes before the last answer and not in its prompt: no rollout would have it.

    Args:
        turns: train on all assistant messages or on the last one.

    Raises:
        RewrittenHistoryError: the template renders the prompt of a trained answer otherwise than within the whole
            conversation, or leaves out a part of the answer: what would be learned is not what is asked
            for at inference.
        ValueError: there is no answer, or none that can be tokenised.
    """
    _check_contents(tokenizer, messages, stop_token_ids, where)
    messages = mark(tokenizer, messages, where)
    text = render_chat(tokenizer, messages, False, chat_template_kwargs, where)
    stops = _texts(tokenizer, stop_token_ids)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"{where}: no assistant message, so nothing to train on; remove the conversation")
    input_ids: list[int] = []
    loss_mask: list[bool] = []
    position = 0
    for index in answers if turns == "all" else answers[-1:]:
        prompt = render_chat(tokenizer, messages[:index], True, chat_template_kwargs, where)
        start, end = _answer_span(text, prompt, messages[index], stops, f"{where}: messages[{index}]")
        answer = text[start:end]
        if (spoken := _without_added_thoughts(answer, messages[index])) != answer and index != answers[-1]:
            raise RewrittenHistoryError(f"{where}: the chat template adds thoughts to messages[{index}]")
        answer = spoken
        for part, trained in ((text[position:start], False), (answer, True)):
            ids = encode_text(tokenizer, part, where)
            if trained and ids[-1] not in stop_token_ids:
                raise ValueError(f"{where}: {part[-20:]!r} does not end in a token of its own; name another stop token")
            input_ids += ids
            loss_mask += [trained] * len(ids)
        position = end
    return Encoded(input_ids, loss_mask)


def _without_added_thoughts(answer: str, message: Message) -> str:
    """An answer's text without the empty block of thoughts that a template puts before it."""
    added = EMPTY_THOUGHTS.match(answer)
    return answer[added.end() :] if added and "<think>" not in (message["content"] or "") else answer


def _answer_span(text: str, prompt: str, answer: Message, stops: list[str], where: str) -> tuple[int, int]:
    """Start and end of an answer in the rendered conversation, its end token included."""
    remedy = (
        "give the tokenizer a chat template that keeps every message as it was, set chat_template_kwargs to suit the "
        "data, split the conversation into one row per assistant message, or train on the last one only (turns='last')"
    )
    if not text.startswith(prompt):
        raise RewrittenHistoryError(
            f"{where}: the chat template rewrites history: the prompt before this message ends with {prompt[-40:]!r}, "
            f"but the whole conversation does not begin with that prompt; {remedy}"
        )
    start = len(prompt)
    ends = [place + len(stop) for stop in stops if (place := text.find(stop, start)) >= 0]
    if not ends:
        raise ValueError(
            f"{where}: the chat template writes none of the stop tokens {stops} after it; name its end token"
        )
    end = min(ends)
    written = _squeeze(text[start:end])
    for said in (answer.get("reasoning_content"), answer["content"]):
        if said and _squeeze(said) not in written:
            raise RewrittenHistoryError(
                f"{where}: the chat template leaves out a part of {said[:80]!r}, "
                f"writing {text[start:end][:80]!r}; {remedy}"
            )
    return start, end


def _texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """How tokens are written; ids beyond the tokenizer's vocabulary are written in no way."""
    return [text for index in token_ids if (text := str(tokenizer.decode([index])))]


def _squeeze(text: str) -> str:
    """Templates may trim and re-space a message, which loses nothing."""
    return "".join(text.split())


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, where: str = "text") -> list[int]:
    """Ids of a rendered text; special tokens in it count as such (but for marked ones), none is added."""
    ids: list[int] = []
    for piece, typed in pieces(text):
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=typed, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        _refuse_unknown(tokenizer, text, where)
    return ids


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> None:
    """Some vocabularies use one token as unknown and end token, so it may stand in the text itself."""

    def is_unknown(part: str) -> bool:
        return tokenizer.unk_token_id in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]

    plain = ""
    for piece, typed in pieces(text):
        for token in () if typed else tokenizer.get_added_vocab():
            piece = piece.replace(token, "")
        plain += piece
    characters = sorted({character for character in plain if is_unknown(character)})
    if characters:
        raise ValueError(
            f"{where}: the tokenizer has no token for {characters} in {unmark(text)[:80]!r}; "
            "add them to the tokenizer's alphabet or remove them from the data"
        )


def _check_contents(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stop_token_ids: Sequence[int], where: str
) -> None:
    """In an answer the mask and the unknown token may stand nowhere, and an end token would end it.

    What others have typed of them is text, see `dirl.reading.control_tokens`; a mask token that is no special one is
    not.
    """
    banned = {name for name in MASK_TOKENS if find_token(tokenizer, name) is not None}
    banned |= {tokenizer.mask_token} if tokenizer.mask_token else set()
    banned |= {tokenizer.unk_token} if tokenizer.unk_token not in (None, tokenizer.eos_token, *END_TOKENS) else set()
    banned |= set(_texts(tokenizer, stop_token_ids))
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        said = f"{message.get('reasoning_content') or ''}{message['content']}"
        found = sorted(token for token in banned if token in said)
        if found:
            raise ValueError(
                f"{where}: messages[{index}] ({message['role']}) contains {found}; remove these tokens from its text"
            )


def fit_conversation(
    encoded: Encoded,
    max_tokens: int,
    overflow: Literal["drop", "cut", "error"],
    counts: FitCounts | None = None,
    where: str = "conversation",
) -> Encoded | None:
    """The conversation within max_tokens; None if it is dropped, also when a cut would leave nothing to train on."""
    counts = FitCounts() if counts is None else counts
    if _fits(len(encoded.input_ids), max_tokens, overflow, ("drop", "cut", "error"), where):
        counts.kept += 1
        return encoded
    if overflow == "cut" and any(encoded.loss_mask[:max_tokens]):
        counts.cut += 1
        return Encoded(encoded.input_ids[:max_tokens], encoded.loss_mask[:max_tokens], complete=False)
    counts.dropped += 1
    return None


def fit_prompt(
    ids: list[int],
    max_tokens: int,
    overflow: Literal["drop", "error"],
    counts: FitCounts | None = None,
    where: str = "prompt",
) -> list[int] | None:
    """The prompt if it is within max_tokens, else None: half a question is none."""
    counts = FitCounts() if counts is None else counts
    if _fits(len(ids), max_tokens, overflow, ("drop", "error"), where, "max_prompt_tokens"):
        counts.kept += 1
        return ids
    counts.dropped += 1
    return None


def _fits(
    length: int, max_tokens: int, overflow: str, known: Sequence[str], where: str, limit: str = "max_tokens"
) -> bool:
    """Whether a length is within the limit, an option of that name; ValueError where a longer one is an error."""
    if max_tokens < 1:
        raise ValueError(f"{limit}={max_tokens} leaves no room; give a positive number")
    if overflow not in known:
        raise ValueError(f"overflow={overflow!r} is unknown; choose from {', '.join(known)}")
    if length > max_tokens and overflow == "error":
        raise ValueError(
            f"{where}: {length} tokens, {limit}={max_tokens}; "
            f"raise the limit or set overflow to {' or '.join(known[:-1])}"
        )
    return length <= max_tokens
