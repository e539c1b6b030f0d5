"""Memory that a rollout engine takes on the trainer's device, from its options in the config."""

from collections.abc import Mapping
from dataclasses import dataclass

from dirl.models.shape import ModelShape

LOGIT_BYTES = 22
"""The torch engine, for each masked position and vocabulary entry: logits in half precision, and five fp32 tables."""


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


def engine_memory(
    class_path: str,
    options: Mapping[str, object],
    shape: ModelShape,
    rollout: RolloutSize,
    half: bool,
    free: float,
) -> EngineMemory:
    """The engine of a config, by the name of its class.

    Args:
        half: the model's own dtype is of two bytes, which `dtype: auto` follows.
        free: bytes that the trainer's weights and the reserve leave when the engine starts.
    """
    name = class_path.rsplit(".", 1)[-1]
    if name in ("ServerEngine", "ReplayEngine"):
        return NO_ENGINE
    if name == "TorchEngine":
        return _torch_engine(options, shape, rollout, half)
    if name == "LMDeployEngine":
        return _lmdeploy_engine(options, shape, rollout, free)
    raise ValueError(
        f"engine {class_path!r} is unknown to plan, which knows TorchEngine, LMDeployEngine, ServerEngine and "
        "ReplayEngine: plan with one of these in its place"
    )


def key_value_bytes(shape: ModelShape, size: int) -> int:
    """Keys and values of one token in all layers, of `size` bytes each."""
    return 2 * shape.num_hidden_layers * shape.key_size * size


def _torch_engine(options: Mapping[str, object], shape: ModelShape, rollout: RolloutSize, half: bool) -> EngineMemory:
    dtype = options["dtype"]
    size = (2 if half else 4) if dtype == "auto" else 4 if dtype == "float32" else 2
    slots = min(int(options["max_batch_size"]), rollout.requests)
    length = -(-rollout.longest // rollout.block_size) * rollout.block_size
    weights = float(size * shape.parameters)
    cache = float(slots * length * key_value_bytes(shape, size))
    logits = float(slots * rollout.block_size * shape.vocab_size * LOGIT_BYTES)
    return EngineMemory(weights, cache, logits, weights, 0.0, f"KV cache: {slots} sequences of {length} tokens")


def _lmdeploy_engine(
    options: Mapping[str, object], shape: ModelShape, rollout: RolloutSize, free: float
) -> EngineMemory:
    weights = 2.0 * shape.parameters
    page = int(options["page_tokens"]) * key_value_bytes(shape, 2)
    blocks = int(options["kv_blocks"])
    share = float(options["kv_memory_share"])
    cache = float(blocks * page) if blocks else max(0.0, share * (free - weights))
    logits = float(int(options["max_batch_size"]) * rollout.block_size * shape.vocab_size * LOGIT_BYTES)
    asleep = 0.0 if options["sleep"] else 1.0
    tokens = int(cache // key_value_bytes(shape, 2))
    note = f"KV cache: {tokens} tokens, room for {tokens // rollout.longest} of the longest sequences"
    return EngineMemory(weights, cache, logits, weights * asleep, cache * asleep, note)
