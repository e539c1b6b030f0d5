"""The text of single tokens, for people: exact where a token is whole characters, its bytes where it is not."""

import re
from collections.abc import Iterable
from functools import cache

from transformers import PreTrainedTokenizerBase

BYTE = "<0x{:02X}>"
"""How a byte that is no character by itself is written, as vocabularies with byte fallback do."""
REPLACEMENT = "\ufffd"


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, str]:
    """Texts by id: special tokens by their names, tokens that end within a character as `<0xE2><0x82>`.

    Raises:
        ValueError: the tokenizer has no token of an id.
    """
    wanted = sorted(set(ids))
    named = tokenizer.convert_ids_to_tokens(wanted) if wanted else []
    decoded = tokenizer.batch_decode(
        [[i] for i in wanted], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    found = {}
    for index, name, text in zip(wanted, named, decoded, strict=True):
        if not isinstance(name, str):
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no token of the id {index}; use that of the model that made "
                "the tokens"
            )
        found[index] = _text(name, text)
    return found


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: ends, roles, the mask token."""
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*tokenizer.all_special_ids, *added))


def _text(name: str, decoded: str) -> str:
    """The text of one token, from its name in the vocabulary and what it is decoded to alone."""
    if REPLACEMENT in decoded and (data := _bytes(name)) is not None:
        return _visible_bytes(data)
    if name.startswith("▁") and not decoded.startswith((" ", "▁")):
        return f" {decoded}"  # a decoder takes the space off what it takes for the start of a text
    return decoded


def _bytes(name: str) -> bytes | None:
    """Those of a token of byte-level BPE, or of a byte that a vocabulary falls back to; None: it is neither."""
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes.fromhex(match[1])
    table = _byte_of_character()
    return bytes(table[c] for c in name) if all(c in table for c in name) else None


def _visible_bytes(data: bytes) -> str:
    """What is whole characters as such, every other byte by its number."""
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(BYTE.format(ord(c) - 0xDC00) if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


@cache
def _byte_of_character() -> dict[str, int]:
    """The bytes of GPT-2's alphabet, which writes each as one printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
