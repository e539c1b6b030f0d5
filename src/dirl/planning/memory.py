"""Memory of one device by part, at the moments of a run that can be its peak.

Bytes of tensors. What is no tensor (CUDA context, NCCL's buffers, holes between the allocator's blocks) is the one
allowance, `reserve`.
"""

from typing import Literal

from dirl.models.chunked_head import CHUNK_BYTES
from dirl.planning.activations import ActivationBytes, element_bytes, residual_bytes, routed_bytes
from dirl.planning.flops import recomputed_layers
from dirl.planning.setup import (
    TrainingSetup,
    adapters_bytes,
    gradients_bytes,
    optimizer_bytes,
    policy_bytes,
    reference_bytes,
    value_weights_bytes,
)
from dirl.rollout.memory import EngineMemory

Part = Literal[
    "weights",
    "reference model",
    "value model",
    "gradients",
    "optimizer state",
    "casts, gathered layers",
    "activations",
    "a layer at work",
    "head: logits, gradient",
    "engine weights",
    "KV cache",
    "engine: logits",
    "reserve",
]
Moment = Literal["head", "layer", "end", "value layer", "value end", "rollout", "push"]
MOMENTS: dict[Moment, str] = {
    "head": "backward begins",
    "layer": "backward of a layer",
    "end": "backward ends",
    "value layer": "value: backward of a layer",
    "value end": "value: backward ends",
    "rollout": "rollout",
    "push": "weight push",
}
BYTES_PER_LOGIT = 8
"""Two fp32 tables of a chunk's [rows, vocabulary], in the forward and in the backward."""
TILE = 128
"""Token budgets are planned in multiples of it."""

Parts = dict[Part, float]


def memory_by_moment(setup: TrainingSetup, engine: EngineMemory | None, reserve: float) -> dict[Moment, Parts]:
    """Bytes by part at each moment; the peak of a run is the greatest sum. Engine None: no rollouts (SFT)."""
    here = 0.0 if setup.cpu_offload else 1.0
    weights, reference = policy_bytes(setup) * here, reference_bytes(setup) * here
    always: Parts = {"weights": weights, "reference model": reference, "reserve": reserve}
    always["value model"] = value_weights_bytes(setup) * here
    learning: Parts = {"gradients": gradients_bytes(setup) * here, "optimizer state": optimizer_bytes(setup) * here}
    moved = 0.0 if setup.offload_optimizer else learning["optimizer state"]
    kept = setup.kept
    training: Parts = {**always, **learning}
    stored: Parts = {**training, "activations": (kept.kept + kept.once) * setup.tokens}
    moments: dict[Moment, Parts] = {
        "head": {**stored, "head: logits, gradient": _head(setup), "casts, gathered layers": _copies_by_head(setup)},
        "layer": _in_layer(setup, stored, kept),
        "end": {
            **training,
            "a layer at work": 0.0 if setup.strategy == "fsdp2" else kept.at_work * setup.tokens,
            "casts, gathered layers": _copies_at_end(setup, kept.at_work * setup.tokens),
        },
    }
    if setup.value is not None:
        moments |= _of_value(training, setup.of_value)
    if engine is None:
        return moments
    for parts in moments.values():
        parts |= {"engine weights": engine.resident_weights, "KV cache": engine.resident_cache}
    resting: Parts = {**always, "optimizer state": moved, "engine weights": engine.weights}
    moments["rollout"] = {**resting, "KV cache": engine.cache, "engine: logits": engine.logits}
    moments["push"] = {**resting, "KV cache": engine.resident_cache, "casts, gathered layers": _pushed(setup, engine)}
    return moments


def _in_layer(setup: TrainingSetup, stored: Parts, kept: ActivationBytes) -> Parts:
    """Bytes in the last layer, or in the one before it: there FSDP2 holds the gradients of the last one in fp32, up to
    the next reduction, beside those of its own, which are whole when its experts' activations have gone."""
    gathered, shape = _copies_in_layer(setup), setup.part
    last: Parts = {**stored, "a layer at work": kept.at_work * setup.tokens, "casts, gathered layers": gathered}
    if setup.gathered_over == 1 or shape.sparse_layers < 2:
        return last
    freed = min(kept.at_work, routed_bytes(shape, setup.compute))
    before: Parts = {
        **stored,
        "activations": stored["activations"] - kept.kept / shape.num_hidden_layers * setup.tokens,
        "a layer at work": (kept.at_work - freed) * setup.tokens,
        "casts, gathered layers": gathered + _layer_gradients(setup),
    }
    return max(last, before, key=lambda parts: sum(parts.values()))


def _layer_gradients(setup: TrainingSetup) -> float:
    """Bytes of the gradients of one layer, as a device has it, in fp32."""
    shape = setup.part
    return 4.0 * shape.layer_parameters if setup.adapters is None else adapters_bytes(setup) / shape.num_hidden_layers


def _of_value(training: Parts, setup: TrainingSetup) -> dict[Moment, Parts]:
    """While the value model, whose shape is the setup's, has its backward pass; its head is one row of numbers."""
    kept = setup.kept
    at_work = kept.at_work * setup.tokens
    scored = setup.scored_share * setup.tokens * setup.shape.hidden_size * residual_bytes(setup.compute)
    return {
        "value layer": {
            **training,
            "activations": (kept.kept + kept.once) * setup.tokens + scored,
            "a layer at work": at_work,
            "casts, gathered layers": _copies_in_layer(setup),
        },
        "value end": {
            **training,
            "a layer at work": 0.0 if setup.strategy == "fsdp2" else at_work,
            "casts, gathered layers": _copies_at_end(setup, at_work),
        },
    }


def _head(setup: TrainingSetup) -> float:
    """Scored rows and their gradient, one chunk of logits, and the fp32 gradient of the head's weight. Under autocast a
    copy of that weight in bf16; under FSDP2 its gradient is rounded to bf16 when the last chunk has gone."""
    shape, compute = setup.shape, setup.compute
    scored = setup.scored_share * setup.tokens
    rows = setup.head_chunk or CHUNK_BYTES // (BYTES_PER_LOGIT * shape.vocab_size)
    logits = BYTES_PER_LOGIT * min(rows, scored) * shape.vocab_size
    hidden = scored * shape.hidden_size * (element_bytes(compute) + residual_bytes(compute))
    table = shape.embedding_parameters
    if setup.adapters is not None:
        return hidden + logits
    if compute == "fsdp_bf16":
        return hidden + 4 * table + max(logits, 2 * table)
    return hidden + (6 if compute == "autocast" else 4) * table + logits


def _copies_by_head(setup: TrainingSetup) -> float:
    """FSDP2 has the head gathered, and a tensor-parallel group once more. Autograd keeps autocast's bf16 weights of the
    layers that are not recomputed."""
    shape = setup.shape
    if setup.strategy == "fsdp2":
        # Without a gradient of the head its forward is the worst: what it was gathered into is there beside it.
        twice = setup.adapters is not None and setup.gathered_over > 1 and not shape.tie_word_embeddings
        times = (2 if twice else 1) + (1 / setup.tensor if setup.tensor > 1 else 0)
        return setup.gathered_bytes * shape.embedding_parameters * times + _fetched(setup, shape.embedding_parameters)
    kept = 1 - recomputed_layers(shape.num_hidden_layers, setup.checkpointing) / shape.num_hidden_layers
    if setup.adapters is not None:
        return adapters_bytes(setup) / 2 * kept if setup.mixed else 0.0
    return 2.0 * kept * (shape.parameters - shape.root_parameters) if setup.mixed else 0.0


def _copies_in_layer(setup: TrainingSetup) -> float:
    """FSDP2 holds up to three layers while one is at work; where embedding and head are one, the gradient of the head
    waits for the embedding's. Else the largest weight's gradient, before it is added to the others."""
    shape = setup.shape
    if setup.adapters is not None:
        layers = 3 * (shape.layer_parameters + setup.adapters.parameters(shape) / shape.num_hidden_layers)
        return setup.gathered_bytes * layers if setup.strategy == "fsdp2" else _copies_by_head(setup)
    if setup.strategy == "fsdp2":
        waiting, layer = shape.embedding_parameters if shape.tie_word_embeddings else 0, setup.part.layer_parameters
        return setup.gathered_bytes * (waiting + 3 * layer) + _fetched(setup, 2 * layer)
    largest = shape.dense_mlp_weights / 3 if shape.dense_layers else shape.experts * shape.expert_weights * 2 / 3
    if not setup.mixed:
        return 4.0 * largest
    return max(_copies_by_head(setup), 2.0 * shape.layer_parameters) + 6.0 * largest


def _copies_at_end(setup: TrainingSetup, at_work: float) -> float:
    """FSDP2: the embedding's gradient in compute precision, and in fp32 on its way into the reduction and out of it.
    Else the table of that gradient, which follows on the first layer's work."""
    table, shards = setup.shape.embedding_parameters, setup.gathered_over
    if setup.adapters is not None:
        return 0.0
    if setup.strategy == "fsdp2":
        if setup.tensor > 1:  # and what the group sums of it, before each has its part
            return table * (2 * setup.gathered_bytes + (setup.gathered_bytes + 4.0 + 4.0 / shards) / setup.tensor)
        return table * (8.0 if shards == 1 else setup.gathered_bytes + 4.0 + 4.0 / shards)
    return max(0.0, 4.0 * table - at_work) + (2.0 * setup.shape.layer_parameters if setup.mixed else 0.0)


def _fetched(setup: TrainingSetup, parameters: float) -> float:
    """Shards that come from the host to be gathered, and do not lie on the device otherwise."""
    return 4.0 * parameters / setup.shards if setup.cpu_offload else 0.0


def _pushed(setup: TrainingSetup, engine: EngineMemory) -> float:
    """The largest weight on its way: gathered from its shards, or cast to the engine's dtype, which goes first. An
    engine that takes no memory of this device is given the trainer's dtype at worst."""
    shape = setup.shape
    size = engine.weights / shape.parameters or 4.0
    if setup.adapters is not None:  # summed in fp32 from the product of the factors, then cast
        merged = (8.0 + size) * setup.adapters.largest_matrix(shape)
        table = size * shape.embedding_parameters if setup.strategy == "fsdp2" else 0.0
        return max(merged, table)
    largest = max(shape.embedding_parameters, 2 * shape.experts * shape.expert_size * shape.hidden_size)
    return size * largest if setup.strategy == "fsdp2" or size < 4 else 0.0
