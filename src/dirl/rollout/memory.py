"""What a rollout engine says of the memory that it takes on the trainer's device."""

from dataclasses import dataclass

from dirl.models.shape import ModelShape

LOGIT_BYTES = 22
"""Bytes of drawing for each masked position and vocabulary entry: logits in half precision, and five fp32 tables."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes while the engine works; the resident ones while the trainer does."""

    weights: float
    cache: float
    logits: float
    resident_weights: float
    resident_cache: float
    note: str = ""


NO_ENGINE = EngineMemory(0.0, 0.0, 0.0, 0.0, 0.0, "the engine takes no memory of this device")


@dataclass(frozen=True)
class RolloutSize:
    """What the engine of one device is given in a rollout."""

    requests: int
    longest: int
    """Tokens of the longest prompt and response."""
    block_size: int
    half_weights: bool = True
    """The model's own dtype is of two bytes."""
    free: float = 0.0
    """Bytes that the trainer's weights and the reserve leave when the engine starts."""


def key_value_bytes(shape: ModelShape, size: int) -> int:
    """Keys and values of one token in all layers, of `size` bytes each."""
    return 2 * shape.num_hidden_layers * shape.key_size * size
