"""What a trainer and a rollout server say to each other in JSON, checked field by field on arrival."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from dirl import finite
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

PROTOCOL = 5
"""Both ends must have the same."""

T = TypeVar("T")


@dataclass(frozen=True)
class Health:
    """What a server says of itself."""

    protocol: int
    instance: str
    """Drawn at random when the server starts: another instance is another process, without our weights."""
    engine: str
    concurrent: bool
    policy_version: int
    run: str | None
    """The run that the server works for, and for no other; None: it is free."""
    heartbeat: int
    busy: int
    """Calls that work or wait for the engine."""
    spec: ModelSpec
    cuda_devices: tuple[str, ...]
    """UUIDs of the GPUs that the server sees."""
    dtype: str | None
    """The dtype of the engine's weights; None: as they come."""


@dataclass(frozen=True)
class Call:
    """One call of `generate`: for this instance of the server, with weights of this run and version and no others."""

    instance: str
    run: str
    policy_version: int
    requests: dict[str, GenerationRequest]
    """The requests by an id that comes back with the trajectory."""
    decoding: DecodingParams


@dataclass(frozen=True)
class Sleep:
    """One call of `sleep`, by the run that the server works for."""

    run: str


@dataclass(frozen=True)
class Failure:
    """Why a call ended early."""

    kind: Literal["ValueError", "refused", "error"]
    """`ValueError`: what the user wrote is wrong, on any server. `refused`: wrong instance, run or weights. `error`:
    the server's own trouble."""
    message: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        if isinstance(error, ValueError):
            return cls("ValueError", str(error))
        return cls("error", f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Line:
    """One line of the answer to a call; `done` or `failure` is the last."""

    heartbeat: int
    """The engine's heartbeat; a line without more is a sign of life."""
    id: str | None = None
    trajectory: Trajectory | None = None
    done: bool = False
    failure: Failure | None = None


def dumps(value: Any) -> str:
    """One line of JSON; NotFiniteError names a number that is not finite."""
    return finite.dumps(_plain(value), type(value).__name__, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Plain values of nested dataclasses; `dataclasses.asdict` would copy every token, and take ten times as long."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    deep = isinstance(value, list | tuple) and bool(value) and dataclasses.is_dataclass(value[0])
    return [_plain(item) for item in value] if deep else value


def loads(cls: type[T], text: str | bytes) -> T:
    """The dataclass `cls` from its JSON; ValueError if a field is unknown, missing or of another type."""
    return read(cls, json.loads(text), cls.__name__)


def read(hint: Any, value: Any, where: str) -> Any:
    """`value`, parsed from JSON, as the type that `hint` says."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, value, where)
    if origin in (typing.Union, types.UnionType):  # of one type and None
        return None if value is None else read(next(a for a in args if a is not types.NoneType), value, where)
    if origin is Literal:
        return _expect(value in args, value, where, f"one of {args}")
    if origin is tuple:
        allowed = (int, float) if args[0] is float else (args[0],)
        good = isinstance(value, list) and all(type(x) in allowed for x in value)
        if good and args[0] is float:
            _check_finite(value, where)
        return tuple(_expect(good, value, where, f"a list of {args[0].__name__}"))
    if origin is list:
        _expect(isinstance(value, list), value, where, "a list")
        return [read(args[0], x, f"{where}[{i}]") for i, x in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: read(args[1], x, f"{where}[{key!r}]") for key, x in value.items()}
    if hint is float:
        _check_finite(value, where)
        return _expect(type(value) in (int, float), value, where, "a number")
    return _expect(type(value) is hint, value, where, hint.__name__)


def _read_dataclass(cls: Any, value: Any, where: str) -> Any:
    hints = _hints(cls)
    _expect(isinstance(value, dict), value, where, "an object")
    needed = {f.name for f in dataclasses.fields(cls) if _has_no_default(f)}
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{where}: unknown fields {unknown}; does the other end run the same version of dirl?")
    if missing := sorted(needed - set(value)):
        raise ValueError(f"{where}: fields {missing} are missing; does the other end run the same version of dirl?")
    return cls(**{name: read(hints[name], x, f"{where}.{name}") for name, x in value.items()})


def _check_finite(value: Any, where: str) -> None:
    """Refuse what is not finite: Python's JSON reads NaN, Infinity and 1e999."""
    if found := finite.first_not_finite(value, where):
        raise ValueError(f"{found}; numbers must be finite")


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def _expect(good: bool, value: T, where: str, wanted: str) -> T:
    if not good:
        raise ValueError(f"{where}: expected {wanted}, got {str(value)[:80]!r}")
    return value
