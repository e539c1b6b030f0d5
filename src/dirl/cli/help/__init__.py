"""Help texts that ship with the package: asked for the options of a command, nothing has to be imported.

`make help-texts` writes them anew from the parsers, and a test holds them against these.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH = 100
MADE_BY = ("jsonargparse", "lightning")
"""Whose versions a text depends on: with others, the parsers are asked."""
KEYS = ("rollout", "evaluate", "samples", "checkpoint", "export", "throughput")
"""Of `fit`, whose options have a help of their own."""
TOPICS = {
    **{name: [name, "--help"] for name in ("fit", "validate", "plan", "rollout", "evaluate", "export", "demo")},
    **{name: [name, "--help"] for name in ("configs", "serve", "trace", "compare", "report", "chat")},
    **{f"fit.{key}": ["fit", f"--{key}.help"] for key in KEYS},
}
"""Name of a text and the arguments that ask for it."""


def shipped(args: Sequence[str]) -> str | None:
    """The text that these arguments ask for; None: they ask for another, or other versions are installed."""
    asked = [*args[:1], *("--help" if arg == "-h" else arg for arg in args[1:])]
    topic = next((name for name, words in TOPICS.items() if words == asked), None)
    return None if topic is None else text_of(topic)


@cache
def text_of(topic: str) -> str | None:
    """The text, if it is of the installed versions."""
    path = FOLDER / f"{topic}.txt"
    if not path.is_file():
        return None
    head, text = path.read_text(encoding="utf-8").split("\n", 1)
    return text if head == versions() else None


@cache
def versions() -> str:
    """The first line of a file: what its text was made with."""
    return " ".join(f"{name}=={_version(name)}" for name in MADE_BY)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
