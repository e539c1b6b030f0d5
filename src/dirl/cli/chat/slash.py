"""The slash commands of a chat: what they change, and what they say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dirl.cli.chat.conversation import Conversation

STRATEGIES = {
    "dynamic": "low_confidence_dynamic",
    "static": "low_confidence_static",
    "sequential": "sequential",
}
"""The short names of the decoding strategies."""


def whole(text: str) -> int:
    return int(text)


def whole_or_none(text: str) -> int | None:
    return None if text in ("null", "none") else int(text)


def strategy(text: str) -> str:
    return STRATEGIES.get(text, text)


SETTINGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "strategy": ("strategy", strategy, "which masked positions a step commits: dynamic, static or sequential"),
    "threshold": ("threshold", float, "of the dynamic strategy: commit what is at least so probable, e.g. 0.8"),
    "steps": ("denoising_steps", whole_or_none, "of the static strategies: denoising steps a block; null: one a token"),
    "temperature": ("temperature", float, "0 is greedy"),
    "top_k": ("top_k", whole, "draw from so many; 0: all"),
    "top_p": ("top_p", float, "nucleus; 1: all"),
    "max": ("max_response_tokens", whole, "longest answer, in tokens"),
}
"""Slash command -> field of DecodingParams, how its value is read, what it does."""
OTHERS = {
    "seed": "seed of the draws from here on",
    "system": "system prompt of a new conversation; without a text: none",
    "history": "on, or off: each question stands alone",
    "settings": "what is set now",
    "reset": "begin anew: the model forgets what was said",
    "help": "this",
    "quit": "end; so does the end of the input, and Ctrl-C twice",
}


def obey(line: str, conversation: Conversation) -> str | None:
    """Do what a line with a slash says, and say what was done; None: the chat ends.

    Raises:
        ValueError: there is no such command, or its value cannot be.
    """
    name, _, value = line[1:].partition(" ")
    value = value.strip()
    if name in ("quit", "exit", "q"):
        return None
    if name == "help":
        return "\n".join(f"/{name:<12} {about}" for name, about in ABOUT.items())
    if name == "settings" or (name in SETTINGS and not value):
        return settings(conversation)
    if name in SETTINGS:
        return _set(name, value, conversation)
    if name == "reset":
        conversation.reset()
        return "a new conversation"
    if name == "system":
        conversation.system_prompt = value or None
        conversation.reset()
        return "a new conversation, " + ("with this system prompt" if value else "without a system prompt")
    if name == "history":
        if value not in ("on", "off"):
            raise ValueError(f"/history {value}: use on or off".replace(" :", ":"))
        conversation.history = value == "on"
        return f"history {value}"
    if name == "seed":
        conversation.seed = _read(whole, name, value)
        return f"seed {conversation.seed}"
    raise ValueError(f"/{name} is no command; there are {', '.join(f'/{known}' for known in ABOUT)}")


def settings(conversation: Conversation) -> str:
    decoding = conversation.decoding
    values = {name: getattr(decoding, field) for name, (field, _, _) in SETTINGS.items()}
    values |= {"history": "on" if conversation.history else "off", "seed": conversation.seed}
    return ", ".join(f"{name} {'null' if value is None else value}" for name, value in values.items())


def _set(name: str, value: str, conversation: Conversation) -> str:
    field, read, _ = SETTINGS[name]
    changes: dict[str, Any] = {field: _read(read, name, value)}
    conversation.decoding = replace(conversation.decoding, **changes)
    return f"{name} {value}"


def _read(read: Callable[[str], Any], name: str, value: str) -> Any:
    try:
        return read(value)
    except ValueError as error:
        kind = "a number" if read is float else "a whole number"
        raise ValueError(f"/{name} {value}: give {kind}".rstrip()) from error


ABOUT = {**{name: about for name, (_, _, about) in SETTINGS.items()}, **OTHERS}
