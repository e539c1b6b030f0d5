"""The tokens that a block-diffusion model needs of its tokenizer: the mask token and the end tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

MASK_TOKENS = ("<|MASK|>", "[MASK]", "<|mdm_mask|>")
"""Names under which vocabularies hold a mask token that the tokenizer does not declare."""
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, mask_token: int | str | None = None, stop_tokens: Sequence[str | int] = ()
) -> None:
    """Raise ValueError if the tokenizer lacks a chat template, a mask token or an end token."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; use the model's chat version or put a "
            "chat_template.jinja beside its tokenizer files"
        )
    mask = mask_token_id(tokenizer, mask_token)
    stops = stop_token_ids(tokenizer, stop_tokens)
    if mask in stops:
        raise ValueError(
            f"token {mask} is mask token and end token at once; configure another mask token than {mask_token!r}"
        )


def mask_token_id(tokenizer: PreTrainedTokenizerBase, configured: int | str | None = None) -> int:
    """The configured mask token, else the one the tokenizer declares, else a vocabulary entry of a usual name."""
    if configured is not None:
        return _token_id(tokenizer, configured, "mask token")
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    found = (index for name in MASK_TOKENS if (index := find_token(tokenizer, name)) is not None)
    index = next(found, None)
    if index is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no mask token: none declared, none of {MASK_TOKENS} in its "
            "vocabulary; configure the mask token by name or id, or, for a model that was never trained with one, take "
            "dirl.models.AutoregressiveModel as the source (docs/adapting.md)"
        )
    return index


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, extra: Sequence[str | int] = ()) -> tuple[int, ...]:
    """Tokens that end a response: first the one that ends an assistant message in the chat template, then the
    tokenizer's end token, `extra`, `<|im_end|>` and `<|endoftext|>` where the vocabulary has them."""
    declared = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    named = [_token_id(tokenizer, token, "stop token") for token in extra]
    usual = [index for name in END_TOKENS if (index := find_token(tokenizer, name)) is not None]
    candidates = list(dict.fromkeys(declared + named + usual))
    tail = _text_after_answer(tokenizer)
    ends = [index for index in tokenizer(tail, add_special_tokens=False)["input_ids"] if index in candidates]
    if not ends:
        raise ValueError(
            f"the chat template ends an assistant message with {tail!r}, which holds none of the known end tokens "
            f"{tokenizer.convert_ids_to_tokens(candidates)}; name its end token as a stop token"
        )
    return tuple(dict.fromkeys([ends[0], *candidates]))


def unknown_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
    """Ids of the model that stand for nothing: a vocabulary padded to a round number has some at its end.

    A stop token that was named by such an id means something, and is none of them.
    """
    return tuple(sorted(set(range(vocab_size)) - set(tokenizer.get_vocab().values()) - set(stop_token_ids)))


def _text_after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    question, answer = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}
    text = render_chat(tokenizer, [question, answer], False, None, "chat template")
    if "ANSWER" not in text:
        raise ValueError(
            f"the chat template renders an assistant message 'ANSWER' as {text!r}, without it; mend the template"
        )
    return text.rpartition("ANSWER")[2]


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str | int, what: str) -> int:
    """An id is taken as it is: a model may have more embeddings than its tokenizer has tokens."""
    index = find_token(tokenizer, token) if isinstance(token, str) else token
    if index is None:
        raise ValueError(
            f"{what} {token!r} is not in the vocabulary of {tokenizer.name_or_path!r}; add it or name another"
        )
    if isinstance(index, bool) or index < 0:
        raise ValueError(f"{what} {token!r} is no token id; give a name from the vocabulary or an id from 0 on")
    return index


def find_token(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    index = tokenizer.convert_tokens_to_ids(name)
    return index if isinstance(index, int) and tokenizer.convert_ids_to_tokens(index) == name else None


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    generation_prompt: bool,
    chat_template_kwargs: Mapping[str, Any] | None,
    where: str,
) -> str:
    """The chat template as text; what the template refuses is a ValueError that names `where`."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **(chat_template_kwargs or {}),
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(
            f"{where}: the chat template refuses roles {[message['role'] for message in messages]}: {error}; "
            "change the data or the tokenizer's chat template"
        ) from error
    assert isinstance(text, str)
    return text
