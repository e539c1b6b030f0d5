"""Conversations to token ids, by the tokenizer's own chat template, with the assistant's tokens marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dirl.models.special_tokens import END_TOKENS, MASK_TOKENS, find_token, render_chat

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, up to the end token of its last trained assistant message."""

    input_ids: Sequence[int]
    loss_mask: Sequence[bool]
    """True for the assistant's tokens: its messages, each with its end token."""
    complete: bool = True
    """False after a cut: the last token is not the end of anything."""


@dataclass
class FitCounts:
    """What the length limit did, for callers to log."""

    kept: int = 0
    cut: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        return f"{self.kept} within the length limit, {self.cut} cut, {self.dropped} dropped"


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
    return encode_text(tokenizer, render_chat(tokenizer, messages, True, chat_template_kwargs, where), where)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    stop_token_ids: Sequence[int],
    *,
    turns: Literal["all", "last"] = "all",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    where: str = "conversation",
) -> Encoded:
    """The conversation as the template renders it as a whole, with the assistant's tokens marked.

    Prompt and answer are tokenised apart, as at inference, so `encode_prompt` of the messages before the
    first trained answer gives a prefix of these ids. What the template writes after an answer's end token
    is context for later turns; after the last one it is left out.

    Args:
        turns: train on all assistant messages or on the last one.

    Raises:
        ValueError: the template renders the prompt of a trained answer otherwise than within the whole
            conversation, or leaves out a part of the answer: what would be learned is not what is asked
            for at inference.
    """
    _check_contents(tokenizer, messages, stop_token_ids, where)
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
        for part, trained in ((text[position:start], False), (text[start:end], True)):
            ids = encode_text(tokenizer, part, where)
            if trained and ids[-1] not in stop_token_ids:
                raise ValueError(f"{where}: {part[-20:]!r} does not end in a token of its own; name another stop token")
            input_ids += ids
            loss_mask += [trained] * len(ids)
        position = end
    return Encoded(input_ids, loss_mask)


def _answer_span(text: str, prompt: str, answer: Message, stops: list[str], where: str) -> tuple[int, int]:
    """Start and end of an answer in the rendered conversation, its end token included."""
    remedy = (
        "give the tokenizer a chat template that keeps every message as it was, set chat_template_kwargs to suit the "
        "data, split the conversation into one row per assistant message, or train on the last one only (turns='last')"
    )
    if not text.startswith(prompt):
        raise ValueError(
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
    if _squeeze(answer["content"]) not in _squeeze(text[start:end]):
        raise ValueError(
            f"{where}: the chat template leaves out a part of {answer['content'][:80]!r}, "
            f"writing {text[start:end][:80]!r}; {remedy}"
        )
    return start, end


def _texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """How tokens are written; ids beyond the tokenizer's vocabulary are written in no way."""
    return [text for index in token_ids if (text := tokenizer.decode([index]))]


def _squeeze(text: str) -> str:
    """Templates may trim and re-space a message, which loses nothing."""
    return "".join(text.split())


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, where: str = "text") -> list[int]:
    """Ids of a rendered text; special tokens in it count as such, none is added."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        _refuse_unknown(tokenizer, text, where)
    return ids


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> None:
    """Some vocabularies use one token as unknown and end token, so it may stand in the text itself."""

    def is_unknown(part: str) -> bool:
        return tokenizer.unk_token_id in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]

    plain = text
    for token in tokenizer.get_added_vocab():
        plain = plain.replace(token, "")
    if is_unknown(plain):
        characters = sorted({character for character in plain if is_unknown(character)})
        raise ValueError(
            f"{where}: the tokenizer has no token for {characters} in {text[:80]!r}; "
            "add them to the tokenizer's alphabet or remove them from the data"
        )


def _check_contents(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stop_token_ids: Sequence[int], where: str
) -> None:
    """The mask and the unknown token may stand nowhere; an end token within an answer would end it."""
    never = {name for name in MASK_TOKENS if find_token(tokenizer, name) is not None}
    never |= {tokenizer.mask_token} if tokenizer.mask_token else set()
    never |= {tokenizer.unk_token} if tokenizer.unk_token not in (None, tokenizer.eos_token, *END_TOKENS) else set()
    stops = set(_texts(tokenizer, stop_token_ids))
    for index, message in enumerate(messages):
        banned = never | stops if message["role"] == "assistant" else never
        found = sorted(token for token in banned if token in message["content"])
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
    if _fits(len(ids), max_tokens, overflow, ("drop", "error"), where):
        counts.kept += 1
        return ids
    counts.dropped += 1
    return None


def _fits(length: int, max_tokens: int, overflow: str, known: Sequence[str], where: str) -> bool:
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} leaves no room; give a positive number")
    if overflow not in known:
        raise ValueError(f"overflow={overflow!r} is unknown; choose from {', '.join(known)}")
    if length > max_tokens and overflow == "error":
        raise ValueError(
            f"{where}: {length} tokens, max_tokens={max_tokens}; "
            f"raise the limit or set overflow to {' or '.join(known[:-1])}"
        )
    return length <= max_tokens
