"""Parsers of the commands: unknown and abbreviated keys are errors, errors are short, another class starts anew."""

from collections.abc import Callable
from typing import Any

import jsonargparse._typehints as typehints
from jsonargparse import Namespace

from dirl.cli.errors import ShortErrors
from dirl.cli.text import use_texts

PARSER_MODE = "omegaconf+"
use_texts(PARSER_MODE)


class CommandParser(ShortErrors):
    """Takes no abbreviated keys, in nested classes either (their parsers are made without arguments)."""

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)


def starting_anew(discard: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    """Of jsonargparse's function that drops what a class named later does not take: what it takes is dropped, too.

    The clip of one objective, or the files of one task, would else be another's without a word. A module or DataModule
    that is derived from the one before keeps what it takes.
    """

    def discard_all(parser: Any, before: Any, after: Any) -> None:
        old, new = (value and value.get("class_path") for value in (before, after))
        named = "." in (old or "") and new  # an option may stand before its class, below a short name such as auto
        if named and old != new and "init_args" in before and not is_own_stage(old, new):
            before["init_args"] = Namespace()
        discard(parser, before, after)

    return discard_all


def is_own_stage(before: str, after: str) -> bool:
    """Whether the latter is a user's own form of the former: of a LightningModule or a LightningDataModule."""
    import lightning as L

    old, new = (typehints.import_object(path) for path in (before, after))
    return issubclass(new, old) and issubclass(new, (L.LightningModule, L.LightningDataModule))


typehints.discard_init_args_on_class_path_change = starting_anew(typehints.discard_init_args_on_class_path_change)
