"""Texts in options: `--data.init_args.system_prompt="Answer: x"` is no mapping, and `\\${` no interpolation.

Interpolations of nested classes are resolved more than once, which would take an escape for one. So an escaped `${` is
marked from where it is read to where an object gets it; config.yaml holds the mark.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from jsonargparse import Namespace, set_loader
from jsonargparse._optionals import get_omegaconf_loader

NULLS = ("null", "Null", "NULL", "~")
_EXPECTED_TEXT = re.compile(r"Expected a <class 'str'>")
_TEXT_KEY = re.compile(r"Parser key \"([^\"]+)\":\s*Expected a <class 'str'>")
_KEY = re.compile(r"NestedArg\(key='([^']+)'")


MARK = "\ue001"
"""A character of Unicode's private use area that stands for the dollar sign of an escaped `${`."""
GAP = "\ue002"
"""A character that stands before a text that is `--`, which argparse would take away; it means nothing."""


BREAKS = set("\x85\u2028\u2029")
"""Ends of lines that YAML folds into blanks unless they are escaped."""


class Text(str):
    """A value that is taken as it stands: jsonargparse reads YAML in `str` itself only."""

    __slots__ = ()


class UsageError(SystemExit):
    """What is wrong with the command line, exit code 2; said by `parse_texts` if nothing can be made of it."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(2)
        self.message, self.report = message, report


def parse_texts(parse: Callable[[list[str]], Any], args: Sequence[str]) -> Any:
    """Parse; a value that was read as YAML where an option takes a text is given again as the text that it is.

    Raises:
        UsageError: whatever is still wrong, which is printed.
    """
    args = [piece for arg in args for piece in _lost_text(mark(arg) if arg != "--" else arg)]
    while True:
        try:
            return _plain(parse(args))
        except UsageError as error:
            mended = _as_text(args, error.report)
            if mended is None:
                print(f"error: {error.message}", file=sys.stderr)
                raise
            args = mended


def mark(value: Any) -> Any:
    """A value as it was read (of lists and mappings, all in it), with what is escaped marked."""
    if isinstance(value, str):
        return GAP + value if value == "--" else value.replace("\\${", f"{MARK}{{")
    if isinstance(value, dict):
        return {key: mark(item) for key, item in value.items()}
    return [mark(item) for item in value] if isinstance(value, list) else value


def unmark(value: Any) -> Any:
    """The text as whoever gets the value shall have it: what was escaped is a `${`."""
    return _with_texts(value, lambda text: text.replace(MARK, "$").removeprefix(GAP))


def _plain(value: Any) -> Any:
    return _with_texts(value, lambda text: str(text) if isinstance(text, Text) else text)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with each text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Namespace):
        return Namespace({key: _with_texts(item, change) for key, item in vars(value).items()})
    if isinstance(value, dict):
        return {key: _with_texts(item, change) for key, item in value.items()}
    return [_with_texts(item, change) for item in value] if isinstance(value, list) else value


def use_texts(mode: str) -> None:
    """Let config files of this parser mode hold texts: what they quote is not read as YAML again."""
    load = get_omegaconf_loader(mode)

    def read(text: str) -> Any:
        try:
            return load(text)
        except (TypeError, ValueError) as error:  # of jsonargparse, which adds to the key; of float, for `._`
            raise yaml.YAMLError(f"{text!r} is no YAML: {error}") from error

    def keep(text: str) -> str:
        try:
            return text if isinstance(read(text), str) else Text(text)
        except yaml.YAMLError:
            return text

    def load_texts(text: str) -> Any:
        value = mark(read(text))
        return value if isinstance(value, str) else _with_texts(value, keep)

    set_loader(mode, load_texts, exceptions=(yaml.YAMLError,))

    def is_itself(text: str) -> bool:
        try:
            return read(text) == text
        except yaml.YAMLError:
            return False

    def quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        """`1e3` in quotes: YAML 1.1 would write it without, and the loader takes it for a number; so with BREAKS."""
        style = None if is_itself(str(text)) and not BREAKS & set(text) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=style)

    for kind in (str, Text):
        yaml.SafeDumper.add_representer(kind, quoted)


def _lost_text(arg: str) -> list[str]:
    """`--name=# text` in two pieces, and `# text`, the value as it stands: YAML would read nothing at all in it."""
    name, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    if value == "--":
        return [f"{name}={mark(value)}"]
    if (name and not equals) or value in NULLS or not value.strip():
        return [arg]
    try:
        lost = yaml.safe_load(value) is None
    except yaml.YAMLError:
        lost = False
    return [arg] if not lost else [name, Text(value)] if name else [Text(value)]


def _as_text(args: list[str], report: str) -> list[str] | None:
    """The arguments with the value that the report is about as a text; None if there is none such."""
    key = _TEXT_KEY.search(report) or (_EXPECTED_TEXT.search(report) and _KEY.search(report))
    if key is None:
        return None
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.startswith("--") and (name.endswith(f".{key[1]}") or name == f"--{key[1]}"):
            if equals:
                return [*args[:index], name, Text(value), *args[index + 1 :]]
            if index + 1 < len(args) and not isinstance(args[index + 1], Text):
                return [*args[: index + 1], Text(args[index + 1]), *args[index + 2 :]]
    return None
