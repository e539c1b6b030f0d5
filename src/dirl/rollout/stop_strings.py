"""Strings that end a response when its text holds one of them, found in tokens block by block."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

TOKENS_PER_CHARACTER = 4
"""The most tokens that a character takes: each may be one of its bytes."""
MARGIN = 8
"""Tokens; how a tokenizer writes the first of a text may depend on its being the first."""


@dataclass(frozen=True)
class StopStrings:
    """Says where they end a response: with the token that completes the one that begins first.

    While an earlier and longer one may yet be completed the response goes on, so that to cut its text at the first of
    all strings in it gives the same as if it had gone on to another end.
    """

    strings: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> "StopStrings | None":
        if not strings:
            return None
        if tokenizer is None:
            raise ValueError(f"decoding.stop_strings={list(strings)}: the engine was set up without a tokenizer")
        return cls(tuple(strings), tokenizer)

    def end(self, ids: Sequence[int], begin: int = 0) -> int | None:
        """Number of tokens up to and including the one that completes a string; None: none is complete, or it waits.

        Args:
            ids: of the response.
            begin: so many of them have been looked at before.
        """
        reach = TOKENS_PER_CHARACTER * max(map(len, self.strings)) + MARGIN
        recent = self._text(ids[max(0, begin - reach) :])
        if not any(string in recent for string in self.strings):
            return None
        text = self._text(ids)
        places = [(place, len(string)) for string in self.strings if (place := text.find(string)) >= 0]
        if not places:
            return None
        first, size = min(places)
        if any(self._may_begin(text[place:]) for place in self._open(first, text)):
            return None
        return self._tokens(ids, text[: first + size])

    def _open(self, first: int, text: str) -> range:
        """Places before `first` where a string may have begun that the text ends within."""
        return range(max(0, len(text) - max(map(len, self.strings)) + 1), first)

    def _may_begin(self, end: str) -> bool:
        return any(string.startswith(end) for string in self.strings)

    def _tokens(self, ids: Sequence[int], start: str) -> int:
        """The fewest whose text begins with all of `start`; of a part of a character's bytes it has another one."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._text(ids[:middle]).startswith(start) else (middle + 1, high)
        return low

    def _text(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        assert isinstance(text, str)
        return text
