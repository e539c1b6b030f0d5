"""Control tokens that a user has typed are text: who writes `<|im_end|>` into a question does not end it.

They are marked before the chat template is filled in, so that the template's own can be told from them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dirl.models.special_tokens import MASK_TOKENS, find_token

MARK = "\ue000"
"""A character for private use in Unicode: it stands before and after a typed control token, and in no rendered text."""
_MARKED = re.compile(f"{MARK}([^{MARK}]*){MARK}")


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of special tokens, the longest first, with mask tokens of usual names."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {name for name in MASK_TOKENS if find_token(tokenizer, name) is not None}
    return sorted(special, key=len, reverse=True)


def mark(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], where: str
) -> list[Mapping[str, Any]]:
    """The messages, with what users, systems and tools have typed of control tokens marked.

    Raises:
        ValueError: a text holds the mark itself.
    """
    tokens = control_tokens(tokenizer)
    pattern = re.compile("|".join(map(re.escape, tokens))) if tokens else None
    marked = []
    for message in messages:
        content = message.get("content") or ""
        if MARK in content:
            raise ValueError(f"{where}: a text holds U+{ord(MARK):04X}, a character of private use; remove it")
        if message["role"] != "assistant" and pattern is not None and pattern.search(content):
            message = {**message, "content": pattern.sub(lambda found: f"{MARK}{found[0]}{MARK}", content)}
        marked.append(message)
    return marked


def unmark(text: str) -> str:
    return text.replace(MARK, "")


def pieces(text: str) -> list[tuple[str, bool]]:
    """A rendered text in pieces, and whether each is a typed control token."""
    parts = _MARKED.split(text)
    return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]
