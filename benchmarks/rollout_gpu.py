"""Rollouts on one GPU: tokens/s of the engines, the push of new weights, and a whole RL step in its parts.

python -m benchmarks.rollout_gpu speed --engines dirl.rollout.TorchEngine dirl.rollout.LMDeployEngine
python -m benchmarks.rollout_gpu all --dry-run
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import record
from benchmarks.device_clock import Deadline, pick_device, synchronize, timed
from benchmarks.engine import make_requests
from benchmarks.gpu_training import build, free
from benchmarks.push import push
from benchmarks.shapes import model_config, model_spec, named_shape, random_backbone
from benchmarks.update import accumulate_gradient
from dirl.models import BlockDiffusionLM, family_of
from dirl.models.tokenizer import new_tokenizer
from dirl.objectives import DiPO
from dirl.rl.steps import step_batch
from dirl.rollout import RolloutEngine
from dirl.types import DecodingParams, ModelSpec, Trajectory

PARTS = ("speed", "push", "step")
TEMPERATURE = 0.1
"""The distributions of random weights are nearly flat: at temperature 1 no threshold would ever be reached."""


@dataclass(frozen=True)
class RolloutPart:
    """What is measured; `engines` are class paths, `engine_args` go to each of them."""

    engines: tuple[str, ...] = ("dirl.rollout.LMDeployEngine", "dirl.rollout.TorchEngine")  # the slow one last
    engine_args: dict[str, Any] = field(default_factory=dict)
    model: str = "sdar-1.7b"
    block_sizes: tuple[int, ...] = (4, 16)
    batches: tuple[int, ...] = (8, 64, 256)
    thresholds: tuple[float, ...] = (1.0, 0.5)
    prompt: int = 256
    response: int = 256
    token_budget: int = 16384

    @classmethod
    def toy(cls) -> "RolloutPart":
        engine = ("dirl.rollout.TorchEngine",)
        return cls(engine, {}, "tiny", (4,), (2, 8), (1.0, 0.05), prompt=6, response=8, token_budget=128)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    device = pick_device(options.dry_run)
    part = RolloutPart.toy() if options.dry_run else RolloutPart()
    given = {
        name: getattr(options, name)
        for name in ("engines", "model", "engine_args", "response", "batches", "block_sizes")
    }
    part = dataclasses.replace(
        part, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    )
    for name in PARTS if options.part == "all" else (options.part,):
        deadline = Deadline(options.time_limit)
        rows = {"speed": measure_speed, "push": measure_push, "step": measure_step}[name](part, device, deadline)
        path = record.save(f"gpu_rollout_{name}", dataclasses.asdict(part), rows)
        columns = list(rows[0]) if rows else ["nothing measured"]
        record.show(_TITLES[name], columns, [list(row.values()) for row in rows], deadline.note())
        print("written to", path, flush=True)


_TITLES = {
    "speed": "rollouts of equal length, requests all at once",
    "push": "weights of an fp32 trainer into the engine, and a plain copy of what is pushed on the device",
    "step": "one RL step; seconds by part",
}


def measure_speed(part: RolloutPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    """Tokens per second by engine, block size, number of requests and threshold; the second rollout counts."""
    rows: list[dict[str, Any]] = []
    for path in part.engines:
        for size in part.block_sizes:
            engine, spec, weights = start(part, path, size, device)
            engine.update_weights(weights.named_parameters(), 0)
            del weights
            free(device)
            for batch in part.batches:
                for threshold in part.thresholds:
                    if not deadline.passed(f"{path} B {size} batch {batch} threshold {threshold}"):
                        record.keep(rows, _speed(part, engine, spec, batch, threshold, device, _name(path)))
            engine.close()
            del engine
            free(device)
    return rows


def _speed(
    part: RolloutPart, engine: RolloutEngine, spec: ModelSpec, batch: int, threshold: float, device: str, name: str
) -> dict[str, Any]:
    decoding = _decoding(part, threshold)
    requests = make_requests(spec, batch, part.prompt)
    list(engine.generate(requests, decoding))  # captures CUDA graphs, picks kernels
    started = time.perf_counter()
    found = list(engine.generate(requests, decoding))
    synchronize(device)
    seconds = time.perf_counter() - started
    tokens = sum(t.response_length for t in found)
    steps = sum(t.denoising_steps(spec.block_size) for t in found)
    return {
        "engine": name,
        "B": spec.block_size,
        "batch": batch,
        "threshold": threshold,
        "tokens per step": sum(len(t.response_ids) for t in found) / steps,
        "seconds": seconds,
        "tokens/s": tokens / seconds,
    }


def measure_push(part: RolloutPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    """A push as a trainer makes it, from fp32 weights on the engine's device, beside a plain copy of what is pushed."""
    rows: list[dict[str, Any]] = []
    for path in part.engines:
        if deadline.passed(path):
            continue
        engine, _, weights = start(part, path, part.block_sizes[0], device)
        tensors = [(name, parameter.detach()) for name, parameter in weights.named_parameters()]
        copies = [torch.empty_like(tensor) for _, tensor in tensors]
        copy = timed(partial(_copy, tensors, copies), device)
        del tensors, copies
        row = {"engine": _name(path), **push(engine, weights.float(), device), "plain copy s": copy.seconds}
        record.keep(rows, row | {"times a copy": row["push s"] / copy.seconds})
        engine.close()
        del engine, weights
        free(device)
    return rows


@torch.no_grad()
def _copy(tensors: list[tuple[str, Tensor]], copies: list[Tensor]) -> None:
    for (_, source), target in zip(tensors, copies, strict=True):
        target.copy_(source)


def measure_step(part: RolloutPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    """Rollout, training (fp32 weights, bf16 compute, AdamW) and push with model and engine on one device.

    The largest of `batches` is the number of responses, in groups of 8; the second step counts.
    """
    rows: list[dict[str, Any]] = []
    for path in part.engines:
        if deadline.passed(path):
            continue
        size = part.block_sizes[0]
        engine, spec, weights = start(part, path, size, device)
        del weights
        model = build(named_shape(part.model), "full", False, device, size).float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        engine.update_weights(family_of(model.backbone.config).weights(model.backbone, engine.dtype), 0)
        _step(part, engine, model, spec, optimizer, device)
        record.keep(rows, {"engine": _name(path), **_step(part, engine, model, spec, optimizer, device)})
        engine.close()
        del engine, model, optimizer
        free(device)
    return rows


def _step(
    part: RolloutPart,
    engine: RolloutEngine,
    model: BlockDiffusionLM,
    spec: ModelSpec,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> dict[str, Any]:
    marks = [time.perf_counter()]

    def mark() -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    requests = make_requests(spec, max(part.batches), part.prompt)
    found = list(engine.generate(requests, _decoding(part, 0.5)))
    engine.sleep()
    mark()
    _train(part, model, spec, optimizer, found, device)
    mark()
    weights = family_of(model.backbone.config).weights(model.backbone, engine.dtype)
    engine.update_weights(weights, engine.policy_version + 1)
    mark()
    rollout, training, push = (b - a for a, b in itertools.pairwise(marks))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else 0.0
    tokens = sum(t.response_length for t in found)
    return {"response tokens": tokens, "rollout": rollout, "training": training, "push": push, "peak GB": peak}


def _train(
    part: RolloutPart,
    model: BlockDiffusionLM,
    spec: ModelSpec,
    optimizer: torch.optim.Optimizer,
    found: Sequence[Trajectory],
    device: str,
) -> None:
    """One optimizer step; every second response is a good one."""
    rewarded = [dataclasses.replace(t, advantage=1.0 if t.sample_index % 2 else -1.0) for t in found]
    prompts = dict.fromkeys(t.prompt_id for t in rewarded)
    groups = [[t for t in rewarded if t.prompt_id == prompt] for prompt in prompts]
    step = step_batch(groups, spec, DiPO(), part.response, part.token_budget)
    with torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu"):
        accumulate_gradient(model, (batch.to(device) for batch in step.micro_batches), step.loss_divisor)
    optimizer.step()
    optimizer.zero_grad()


def start(part: RolloutPart, path: str, block_size: int, device: str) -> tuple[RolloutEngine, ModelSpec, nn.Module]:
    """An engine that awaits weights, and a model that has some."""
    shape = named_shape(part.model)
    config = model_config(shape, block_size)
    # Random weights stop anywhere: to the limit instead, so that all engines decode equally many tokens.
    spec = dataclasses.replace(model_spec(shape, block_size), stop_token_ids=())
    dtype = "bfloat16" if device != "cpu" else "float32"
    weights = random_backbone(config, getattr(torch, dtype), device).requires_grad_(False)
    module, name = path.rsplit(".", 1)
    options = {"max_batch_size": max(part.batches), "dtype": dtype}
    if name in ("LMDeployEngine", "UntracedEngine"):  # by default its KV cache takes the memory that the trainer needs
        options["kv_blocks"] = _pages(part, block_size)
    engine = getattr(importlib.import_module(module), name)(**options | part.engine_args)
    engine.setup(config, new_tokenizer(), spec, device)
    return engine, spec, weights


def _pages(part: RolloutPart, block_size: int, page_tokens: int = 64) -> int:
    """Pages of a KV cache that holds all sequences at once, and a tenth more."""
    pages = -(-(part.prompt + part.response + 2 * block_size) // page_tokens)
    return max(16, round(1.1 * pages * max(part.batches)))


def _decoding(part: RolloutPart, threshold: float) -> DecodingParams:
    return DecodingParams(threshold=threshold, temperature=TEMPERATURE, max_response_tokens=part.response)


def _name(path: str) -> str:
    return path.rsplit(".", 1)[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--engines", nargs="+", help="class paths")
    parser.add_argument("--engine-args", type=json.loads, help="JSON, e.g. '{\"kv_memory_share\": 0.3}'")
    parser.add_argument("--model", help="shape of benchmarks/shapes.py")
    parser.add_argument("--batches", nargs="+", type=int, help="numbers of requests")
    parser.add_argument("--block-sizes", nargs="+", type=int)
    parser.add_argument("--response", type=int, help="tokens")
    parser.add_argument("--time-limit", type=float, default=540, help="seconds after which a part starts nothing new")
    parser.add_argument("--dry-run", action="store_true", help="the torch engine at toy size on CPU")
    return parser


if __name__ == "__main__":
    main()
