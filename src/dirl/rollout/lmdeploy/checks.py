"""What LMDeploy's engine is looked at for: settings, lengths, samples that are independent, and how it ended."""

from asyncio import Task
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dirl.models.shape import ModelShape
from dirl.rollout.engine import EnginesLostError
from dirl.rollout.lmdeploy.rank_group import first_device
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory


class NotIndependentError(RuntimeError):
    """Samples of a group are not drawn on their own."""


def check_settings(spec: ModelSpec, device: str, page_tokens: int, prefill_tokens: int, max_batch_size: int) -> None:
    """Raise ValueError for a device, block size or number of tokens that LMDeploy does not take."""
    size = spec.block_size
    if torch.device(device).type != "cuda":
        raise ValueError(f"the LMDeploy engine needs a CUDA device, not {device!r}: use dirl.rollout.TorchEngine")
    if size & (size - 1) or size > page_tokens:
        raise ValueError(
            f"block_size={size}: the LMDeploy engine takes powers of two up to page_tokens={page_tokens}; use "
            "dirl.rollout.TorchEngine for others"
        )
    if prefill_tokens % size or prefill_tokens < size * max_batch_size:
        raise ValueError(
            f"engine.prefill_tokens={prefill_tokens}: use a multiple of block_size={size} that is at least "
            f"max_batch_size * block_size = {max_batch_size * size}"
        )


def check_parallel(tp: int, shape: ModelShape, device: str) -> None:
    """Raise ValueError where a model's layers cannot be divided among `tp` GPUs, or there are not so many to take."""
    if tp == 1:
        return
    heads = shape.num_key_value_heads
    sizes = {"num_attention_heads": shape.num_attention_heads}
    if shape.dense_layers:
        sizes["intermediate_size"] = shape.intermediate_size
    if shape.experts:
        sizes["moe_intermediate_size"] = shape.expert_size
    sizes["num_key_value_heads"] = heads if tp <= heads else tp * (tp % heads == 0)  # a head may be kept several times
    for name, size in sizes.items():
        if size % tp or not size:
            value = heads if name == "num_key_value_heads" else size
            raise ValueError(f"engine.tp={tp}: the model's {name}={value} cannot be divided so; use a divisor of it")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        if processes > 1:
            raise ValueError(
                f"engine.tp={tp}: each of the {processes} training processes has one GPU and would take the others' "
                "too; serve the engine on GPUs of its own (lightning run serve, configs/engine/lmdeploy_server.yaml)"
            )
    first, count = first_device(torch.device(device)), torch.cuda.device_count()
    if first + tp > count:
        raise ValueError(
            f"engine.tp={tp}: from device {first} on there are {count - first} of the {count} GPUs that this process "
            "sees; use fewer, or let it see more (CUDA_VISIBLE_DEVICES)"
        )


def check_lengths(requests: Sequence[GenerationRequest], decoding: DecodingParams, block_size: int, room: int) -> None:
    """Raise ValueError where a prompt and its response do not fit into the cache.

    Args:
        room: positions that a sequence may have.
    """
    longest = max((len(r.prompt_ids) for r in requests), default=0) + decoding.max_response_tokens
    if -(-longest // block_size) * block_size > room:
        raise ValueError(
            f"a prompt and its response may take {longest} tokens, the engine's KV cache holds {room}: raise "
            "engine.kv_blocks or kv_memory_share, or lower decoding.max_response_tokens"
        )


def check_groups(
    generate: Callable[[Sequence[GenerationRequest], DecodingParams], Iterator[Trajectory]], spec: ModelSpec
) -> None:
    """Equal prompts with different seeds, drawn from a flat distribution, cannot give equal samples by chance."""
    decoding = DecodingParams(temperature=1e4, max_response_tokens=64, threshold=1.0)
    prompt = (spec.pad_token_id,) * (spec.block_size + 1)
    requests = [GenerationRequest("check", i, prompt, seed=i) for i in range(8)]
    samples = {t.response_ids for t in generate(requests, decoding)}
    if len(samples) < 8:
        raise NotIndependentError(
            f"LMDeploy gave {len(samples)} different samples for a group of 8, not drawn independently, "
            "so that its rollouts cannot be trained from: use dirl.rollout.TorchEngine"
        )


def ended_by_itself(request: GenerationRequest, status: object, work: Task[Any] | None) -> EnginesLostError:
    """What to say of a request that came to no end.

    Args:
        work: the loop of LMDeploy's engine.
    """
    cause = work.exception() if work is not None and work.done() and not work.cancelled() else None
    error = EnginesLostError(
        f"LMDeploy ended request {request.prompt_id}#{request.sample_index} with {status}"
        + (f": its engine stopped after {type(cause).__name__}: {cause}" if cause is not None else "")
    )
    error.__cause__ = cause
    return error
