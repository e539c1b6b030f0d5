"""Parsers of the commands: unknown and abbreviated keys are errors, and errors are short."""

from typing import Any

from dirl.cli.errors import ShortErrors
from dirl.cli.text import use_texts

PARSER_MODE = "omegaconf+"
use_texts(PARSER_MODE)


class CommandParser(ShortErrors):
    """Takes no abbreviated keys, in nested classes either (their parsers are made without arguments)."""

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)
