"""What a trainer and a rollout server say to each other in JSON, checked field by field on arrival."""

from dataclasses import dataclass
from typing import Literal, TypeVar

from dirl.checked_json import from_json
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


def loads(cls: type[T], text: str | bytes) -> T:
    """The dataclass `cls` from its JSON; ValueError if a field is unknown, missing or of another type."""
    try:
        return from_json(cls, text)
    except ValueError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error
