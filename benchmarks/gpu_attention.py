"""FlexAttention under our block mask beside dense SDPA on the same packed rows, forward and backward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import record
from benchmarks.device_clock import Deadline, timed
from benchmarks.gpu_training import BLOCK_SIZE, free, make_row
from benchmarks.shapes import TOYS, model_spec
from benchmarks.update import computed_pairs
from dirl.attention import AttentionMask, build_mask
from dirl.attention.backend import Backend, masked_attention
from dirl.batches import Layout
from dirl.planning import visible_pairs


@dataclass(frozen=True)
class AttentionPart:
    """Heads are those of SDAR-4B and 8B; `dense` ends where a T x T mask would take too much memory."""

    tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    dense_tokens: int = 16384
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    backend: Backend = "flex"

    @classmethod
    def toy(cls) -> "AttentionPart":
        """On CPU FlexAttention has no backward; the segments stand in."""
        return cls((96, 192), heads=4, kv_heads=2, head_dim=16, backend="segments")


def run(part: AttentionPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for tokens in part.tokens:
        if deadline.passed(f"{tokens} tokens"):
            continue
        layout = make_row("policy", model_spec(TOYS["small"], BLOCK_SIZE), tokens).to(device).layout
        inputs = _inputs(part, len(layout), device)
        row: dict[str, Any] = {"tokens": len(layout), "visible_pairs": visible_pairs(layout)}
        row["computed_pairs"] = computed_pairs(layout, part.backend)
        ours = _measure(row, part.backend, layout, inputs, device, "ours")
        if tokens <= part.dense_tokens:
            _compare_with_dense(row, layout, inputs, device, ours)
        del ours, inputs
        free(device)
        record.keep(rows, row)
    return rows


def _compare_with_dense(
    row: dict[str, Any], layout: Layout, inputs: tuple[Tensor, ...], device: str, ours: tuple[Tensor, ...]
) -> None:
    """Nothing is added to the row where dense attention does not fit."""
    try:
        dense = _measure(row, "dense", layout, inputs, device, "dense")
    except torch.OutOfMemoryError:
        return
    row["difference"] = max(_relative(a, b) for a, b in zip(ours, dense, strict=True))


def show(rows: Sequence[dict[str, Any]], note: str) -> None:
    columns = ("tokens", "visible", "computed", "mask ms", "ms", "GB", "dense mask ms", "ms", "GB", "difference")
    cells = [
        (
            row["tokens"],
            f"{row['visible_pairs'] / row['tokens'] ** 2:.1%}",
            f"{row['computed_pairs'] / row['tokens'] ** 2:.1%}",
            *(row.get(name, None) for name in ("ours_mask_ms", "ours_ms", "ours_gb")),
            *(row.get(name, None) for name in ("dense_mask_ms", "dense_ms", "dense_gb", "difference")),
        )
        for row in rows
    ]
    record.show("attention of one layer, forward and backward; pairs as shares of T x T", columns, cells, note)


def _inputs(part: AttentionPart, length: int, device: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device != "cpu" else torch.float32

    def random(heads: int) -> Tensor:
        return torch.randn(1, heads, length, part.head_dim, device=device, dtype=dtype, requires_grad=True)

    return random(part.heads), random(part.kv_heads), random(part.kv_heads)


def _measure(
    row: dict[str, Any], backend: Backend, layout: Layout, inputs: tuple[Tensor, ...], device: str, name: str
) -> tuple[Tensor, ...]:
    """Add the times to the row; returns output and gradients."""
    building = timed(lambda: build_mask(layout, backend), device)
    mask = build_mask(layout, backend)
    timing = timed(lambda: _attend(inputs, mask), device)
    row |= {
        f"{name}_mask_ms": building.seconds * 1e3,
        f"{name}_ms": timing.seconds * 1e3,
        f"{name}_first_seconds": timing.first_seconds,
        f"{name}_gb": timing.peak_bytes / 1e9,
    }
    return _attend(inputs, mask)


def _attend(inputs: tuple[Tensor, ...], mask: AttentionMask) -> tuple[Tensor, ...]:
    out, _ = masked_attention(nn.Module(), *inputs, mask, scaling=inputs[0].shape[-1] ** -0.5)
    return out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())
