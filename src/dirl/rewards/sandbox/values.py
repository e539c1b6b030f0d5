"""Values on their way between tests and the code that they try: plain data, as JSON; never objects.

Both sides run this in a sandbox of their own, so it imports nothing but the standard library. What code returns cannot
act on the tests: an object that says it equals everything arrives as a handle, equal to itself alone.
"""

import json
import socket
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES = 16 << 20
"""The largest message; what is larger is no answer that a test could want."""
LARGE = 1 << 60
"""From here on an integer is sent in hexadecimal: Python refuses to read very long decimal ones."""
_empty: dict[str, str] = {}
KEYS, VALUES, ITEMS = type(_empty.keys()), type(_empty.values()), type(_empty.items())
SEQUENCES: dict[str, Callable[[list], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
}
TEXTS: dict[str, Callable[[str], Any]] = {"decimal": Decimal, "fraction": Fraction, "complex": complex}

Other = Callable[[Any], list]
"""Encodes what is no plain data, or raises."""


def encode(value: Any, other: Other) -> Any:
    """JSON of a value: scalars as they are, all else as `[kind, content]`; subclasses become what they derive from."""
    if value is None or type(value) is bool:
        return value
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -LARGE < number < LARGE else ["int", hex(number)]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, dict):
        return ["dict", [[encode(k, other), encode(v, other)] for k, v in dict.items(value)]]
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return [kind.__name__, [encode(item, other) for item in kind.__iter__(value)]]
    return _encode_rare(value, other)


def _encode_rare(value: Any, other: Other) -> Any:
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, bytes(value).hex()]
    if isinstance(value, range):
        return ["range", [encode(part, other) for part in (value.start, value.stop, value.step)]]
    if isinstance(value, complex):
        return ["complex", repr(complex(value))]
    if isinstance(value, Decimal):
        return ["decimal", Decimal.__str__(value)]
    if isinstance(value, Fraction):
        return ["fraction", f"{value.numerator}/{value.denominator}"]
    if isinstance(value, KEYS):
        return ["set", [encode(item, other) for item in value]]
    if isinstance(value, VALUES | ITEMS):
        return ["list", [encode(item, other) for item in value]]
    if hasattr(type(value), "__next__"):
        return ["iterator", [encode(item, other) for item in value]]
    return other(value)


def decode(data: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value of such JSON; `other` is given kind and content of what is no plain data."""
    if not isinstance(data, list):
        return data
    kind, content = data
    if kind in SEQUENCES:
        return SEQUENCES[kind]([decode(item, other) for item in content])
    if kind == "dict":
        return {decode(key, other): decode(value, other) for key, value in content}
    if kind == "int":
        return int(content, 16)
    if kind in TEXTS:
        return TEXTS[kind](content)
    if kind == "range":
        return range(*[decode(part, other) for part in content])
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(content) if kind == "bytes" else bytearray.fromhex(content)
    return other(kind, content)


class Link:
    """Messages, each JSON with its length before it, over a socket that was inherited."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._file = self._socket.makefile("rb")

    def send(self, message: dict) -> None:
        data = json.dumps(message).encode()
        self._socket.sendall(len(data).to_bytes(8, "big") + data)

    def receive(self) -> dict:
        """The next message; EOFError if the other side has ended."""
        length = int.from_bytes(self._exactly(8), "big")
        if length > MAX_BYTES:
            raise ValueError(f"a value of {length} bytes, more than {MAX_BYTES}")
        return json.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError("the process of the code has ended")
        return data
