"""What LMDeploy's engine takes of each of its devices, for a plan."""

from collections.abc import Mapping
from typing import Any

from dirl.models.shape import ModelShape
from dirl.rollout.memory import LOGIT_BYTES, EngineMemory, RolloutSize, key_value_bytes


def engine_memory(options: Mapping[str, Any], shape: ModelShape, rollout: RolloutSize) -> EngineMemory:
    tp = int(options["tp"])
    whole = (1 if shape.tie_word_embeddings else 2) * shape.vocab_size * shape.hidden_size  # on every rank
    weights = 2.0 * (whole + (shape.parameters - whole) / tp)
    token = key_value_bytes(shape, 2) // min(tp, shape.num_key_value_heads)
    blocks, share = int(options["kv_blocks"]), float(options["kv_memory_share"])
    page = int(options["page_tokens"]) * token
    cache = float(blocks * page) if blocks else max(0.0, share * (rollout.free - weights))
    logits = float(int(options["max_batch_size"]) * rollout.block_size * shape.vocab_size * LOGIT_BYTES)
    asleep = 0.0 if options["sleep"] else 1.0
    tokens = int(cache // token)
    note = f"KV cache: {tokens} tokens, room for {tokens // rollout.longest} of the longest sequences"
    if tp > 1:
        note += f"; on each of {tp} GPUs, which only a training run of one process can have beside itself"
    return EngineMemory(weights, cache, logits, weights * asleep, cache * asleep, note)
