"""Texts of models and data in a terminal: all of it is seen, nothing of it is obeyed."""

from rich.text import Text

SEEN = {"\t": "    ", "\r": "\\r"}


def printable(text: str) -> str:
    """New lines stay; controls, marks of direction and what else has no picture are written by their numbers."""
    return "".join(c if c == "\n" or c.isprintable() else SEEN.get(c) or _number(c) for c in text)


def _number(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def styled(text: str, style: str = "") -> Text:
    """The text for rich, which sees no markup in it."""
    return Text(printable(text), style)


def shortened(text: str, most: int) -> str:
    """The text cut to so many characters, and how many are left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} characters more)"
