"""Forward and backward of SFT and of the policy update on one GPU: tokens/s, utilisation, memory, compilation.

Weights and gradients are bf16, what FSDP2 computes with; there is no optimizer, for AdamW's fp32 state of 8B does not
fit one GPU. With `optimizer`, weights and gradients are fp32 under autocast and each row ends with a step of AdamW; of
8B, `layers` then says how many layers there are. Each row is kept in as many activations as fit: recomputation is tried
in the order none, selective, full.
"""

import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch._dynamo.utils
from torch import Tensor

from benchmarks import record
from benchmarks.device_clock import Deadline, Timing, matrix_rate, timed
from benchmarks.shapes import model_config, model_spec, named_shape, random_backbone
from benchmarks.update import accumulate_gradient, computed_pairs, scored_tokens
from benchmarks.workload import Load, make_groups
from dirl.attention import build_mask
from dirl.batches import PackedBatch
from dirl.diffusion.noise import NoiseConfig
from dirl.losses.supervised import weighted_cross_entropy
from dirl.models import BlockDiffusionLM
from dirl.modules.layers import Checkpointing, compile_layers, recompute_layers
from dirl.objectives import DiPO
from dirl.packing.pieces import Encoded, PieceGroup, alone, conversation
from dirl.packing.rows import pack
from dirl.planning import ModelShape, layout_work, training_flops
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams, ModelSpec

Kind = Literal["sft", "policy"]
MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")
BLOCK_SIZE = 4
LONGEST = 2048


@dataclass(frozen=True)
class TrainingPart:
    """What is measured: every model with every kind and length, the first ones first."""

    models: tuple[str, ...] = ("sdar-1.7b", "sdar-4b", "sdar-8b")
    kinds: tuple[Kind, ...] = ("policy", "sft")
    tokens: tuple[int, ...] = (16384, 32768, 8192, 4096, 2048)
    compiled: bool = True
    modes: tuple[Checkpointing, ...] = MODES
    layers: int = 0
    """Of every model; 0: as many as it has."""
    optimizer: bool = False

    def shape(self, model: str) -> ModelShape:
        shape = named_shape(model)
        return (
            dataclasses.replace(shape, num_hidden_layers=self.layers, dense_layers=self.layers)
            if self.layers
            else shape
        )

    @classmethod
    def toy(cls) -> "TrainingPart":
        return cls(("tiny",), tokens=(96, 192), compiled=False, modes=("none",))


def run(part: TrainingPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    """A row per model, kind and length; those that do not fit even with full recomputation have no times."""
    rate = matrix_rate(device, 8192 if device != "cpu" else 64)
    rows: list[dict[str, Any]] = []
    for name in part.models:
        waiting = [(kind, tokens) for tokens in part.tokens for kind in part.kinds]
        for mode in part.modes:
            if not waiting:
                break
            model = build(part.shape(name), mode, part.compiled, device)
            waiting = _measure_all(part, model, name, mode, waiting, rate, device, deadline, rows)
            del model
            free(device)
        rows += [{"model": name, "kind": kind, "asked": tokens} for kind, tokens in waiting]
    return rows


def show(rows: Sequence[dict[str, Any]], note: str) -> None:
    columns = ("model", "kind", "tokens", "recompute", "s", "tokens/s", "MFU", "HFU", "mask", "peak GB", "first s")
    cells = [
        (
            row["model"],
            row["kind"],
            row.get("tokens", row["asked"]),
            row.get("recompute", "does not fit"),
            row.get("seconds"),
            row.get("tokens_per_second"),
            *(f"{row[name]:.1%}" if name in row else "-" for name in ("mfu", "hfu", "mask_share")),
            row["peak_bytes"] / 1e9 if "peak_bytes" in row else None,
            row.get("first_seconds"),
        )
        for row in sorted(rows, key=lambda row: (row["model"], row["kind"], row["asked"]))
    ]
    about = "MFU: without what is recomputed, of the measured matrix rate; HFU: with it; first s: with compilation."
    record.show("forward and backward of one packed row, bf16", columns, cells, f"{about} {note}")


def build(
    shape: ModelShape, mode: Checkpointing, compiled: bool, device: str, block_size: int = BLOCK_SIZE
) -> BlockDiffusionLM:
    """A random model, ready to train; float32 on CPU."""
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    backbone = random_backbone(model_config(shape, block_size), dtype, device)
    recompute_layers(backbone.model.layers, mode)
    if compiled:
        torch._dynamo.reset()  # what models before this one compiled counts against the limit of this one
        compile_layers(backbone.model.layers)
    return BlockDiffusionLM(backbone, model_spec(shape, block_size))


def free(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def make_row(kind: Kind, spec: ModelSpec, tokens: int) -> PackedBatch:
    """The fullest row of at most `tokens` tokens."""
    longest = max(spec.block_size, min(LONGEST, tokens // 8))
    if kind == "policy":
        load = Load(spec.block_size, 2, 4, 8, min(150, longest), max(1, longest * 3 // 4), longest)
        batches = step_batch(make_groups(load, spec), spec, DiPO(), longest, tokens).micro_batches
    else:
        rng = np.random.default_rng(0)
        lengths = rng.integers(longest * 3 // 2, longest * 2 + 1, 64)
        batches = pack((_conversation(int(n), spec, rng) for n in lengths), tokens)
    return max((batch for batch in batches if len(batch) <= tokens), key=len)


def _conversation(length: int, spec: ModelSpec, rng: np.random.Generator) -> PieceGroup:
    """An eighth of it is the prompt."""
    ids = rng.integers(0, spec.vocab_size - 2, length).tolist()
    mask = [i >= length // 8 for i in range(length)]
    return alone(conversation(Encoded(ids, mask), spec, NoiseConfig(), rng)[0])


def backward_pass(model: BlockDiffusionLM, kind: Kind, batch: PackedBatch) -> Callable[[], Tensor | None]:
    """One forward and backward; gradients add up, as over micro-batches."""
    divisor = float(scored_tokens([batch]))

    def policy() -> None:
        accumulate_gradient(model, [batch], divisor)

    def sft() -> None:
        scores = model(batch, DecodingParams(), entropy=False)
        weighted_cross_entropy(scores.logprobs, batch.loss_weights[scores.positions], divisor).backward()

    return policy if kind == "policy" else sft


def with_optimizer(model: BlockDiffusionLM, call: Callable[[], object], device: str) -> Callable[[], None]:
    """The pass and a step of AdamW on fp32 weights, as one GPU or DDP trains."""
    optimizer = torch.optim.AdamW(model.float().parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            call()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measure_all(
    part: TrainingPart,
    model: BlockDiffusionLM,
    name: str,
    mode: Checkpointing,
    waiting: list[tuple[Kind, int]],
    rate: float,
    device: str,
    deadline: Deadline,
    rows: list[dict[str, Any]],
) -> list[tuple[Kind, int]]:
    """Append a row for each that fits into memory; returns those that do not."""
    too_large = []
    for kind, tokens in waiting:
        if deadline.passed(f"{name} {kind} {tokens}"):
            continue
        batch = make_row(kind, model.spec, tokens).to(device)
        call = backward_pass(model, kind, batch)
        timing = _time(with_optimizer(model, call, device) if part.optimizer else call, device)
        del call
        if timing is None:
            too_large.append((kind, tokens))
            model.zero_grad()
            free(device)
            continue
        found = describe(part.shape(name), batch, timing, mode, rate, device)
        about = {"layers": part.shape(name).num_hidden_layers, "optimizer": part.optimizer}
        record.keep(rows, {"model": name, "kind": kind, "asked": tokens, **about, **found})
    return too_large


def _time(call: Callable[[], object], device: str) -> Timing | None:
    """None where it does not fit. The error, which holds on to the tensors of all its frames, ends here."""
    try:
        return timed(call, device)
    except torch.OutOfMemoryError:
        return None


def describe(
    shape: ModelShape, batch: PackedBatch, timing: Timing, mode: Checkpointing, rate: float, device: str
) -> dict[str, Any]:
    flops = training_flops(shape, layout_work(batch), mode)
    mask = timed(lambda: build_mask(batch.layout), device, repeats=5)
    return {
        "tokens": len(batch),
        "scored": scored_tokens([batch]),
        "visible_pairs": int(layout_work(batch).pairs),
        "computed_pairs": computed_pairs(batch.layout, "auto"),
        "recompute": mode,
        "tokens_per_second": len(batch) / timing.seconds,
        "model_flops": flops.model,
        "mfu": flops.model / timing.seconds / rate,
        "hfu": (flops.model + flops.recomputed.total) / timing.seconds / rate,
        "matrix_rate": rate,
        "mask_seconds": mask.seconds,
        "compiled_graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "mask_share": mask.seconds / timing.seconds,
        **dataclasses.asdict(timing),
    }
