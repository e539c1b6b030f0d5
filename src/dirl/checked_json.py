"""JSON of dataclasses, one line each: what is read is checked field by field, by pydantic."""

import dataclasses
import json
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from dirl import finite

T = TypeVar("T")

CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")
"""Of a class that is read or written here, and of the dataclasses in its fields."""
OTHER_VERSION = "was it written by another version of dirl?"


def to_json(value: Any) -> str:
    """A dataclass as one line of JSON; NotFiniteError names a number that is not finite."""
    cls: Any = type(value)
    text = _adapter(cls).dump_json(value).decode()
    if "NaN" in text or "Infinity" in text:  # perhaps within a string
        finite.dumps(json.loads(text), cls.__name__)
    return text


def from_json(cls: type[T], text: str | bytes) -> T:
    """The dataclass `cls` from its JSON.

    ValueError names the first place that does not fit and what stands there: a field that is unknown, missing or of
    another type, a number that is not finite, or what the class itself refuses.
    """
    try:
        return _adapter(cast(Any, cls)).validate_json(text)
    except ValidationError as error:
        raise ValueError(_first(error.errors(include_url=False), cls)) from error


@cache
def _adapter(cls: Any) -> TypeAdapter:
    return TypeAdapter(with_config(CONFIG)(cls))


def _first(errors: list[ErrorDetails], cls: Any) -> str:
    unknown = [error for error in errors if error["type"] == "unexpected_keyword_argument"]
    if unknown:
        names = sorted(_place(error) for error in unknown)
        known = ", ".join(field.name for field in dataclasses.fields(cls))
        return f"unknown fields {names}; its own are {known}; {OTHER_VERSION}"
    error = errors[0]
    place, text = _place(error), error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place} is missing; {OTHER_VERSION}"
    if error["type"] == "json_invalid":
        return text
    found = "" if error["type"] == "value_error" else f", got {error['input']!r:.80}"
    return f"{place}: {text}{found}" if place else f"{text}{found}"


def _place(error: ErrorDetails) -> str:
    """`requests.a.prompt_ids[3]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"]).lstrip(".")
