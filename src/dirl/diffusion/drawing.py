"""Candidates of a denoising step from the model's logits, on a GPU in one pass over them where that is possible.

Both engines draw here. `dirl.diffusion.sampling` says what is drawn; the kernels give the same draws of the same seeds
but where rounding puts a uniform number on the other side of a boundary between two tokens.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from dirl.diffusion.sampling import candidates, cuts, finite_rows, scaled_logits, uniform
from dirl.spans import Spans
from dirl.types import DecodingParams

ROWS_BYTES = 1 << 28
"""Bytes of fp32 logits that are drawn from at a time without the kernels."""


CHECKED_ROWS = 16

Drawing = Literal["auto", "kernel", "torch"]
"""Who draws where the kernels could: the kernels, if they draw what the functions draw when it is tried; the kernels,
untried; the functions."""


@dataclass(frozen=True)
class Draws:
    """For each row: a candidate, the log-probability with which it was drawn, its confidence."""

    tokens: Int[Tensor, " M"]
    logprobs: Float[Tensor, " M"]
    confidence: Float[Tensor, " M"]
    finite: Bool[Tensor, " M"]
    """Whether all logits of the row are; else the others mean nothing."""


def draw_rows(
    logits: Float[Tensor, "M V"],
    seeds: Int64[Tensor, " M"],
    positions: Int64[Tensor, " M"],
    forwards: Int64[Tensor, " M"],
    banned: Spans,
    decoding: DecodingParams,
    wanted: Bool[Tensor, " M"] | None = None,
    drawing: Drawing = "auto",
) -> Draws:
    """Draw a token for each row, by the number that `uniform` gives for its seed, position and forward.

    Args:
        logits: of any floating type; they are not changed.
        banned: `ModelSpec.banned`.
        wanted: rows that are asked for; what the others get means nothing. None: all.
        drawing: who draws where the kernels could.
    """
    if drawing != "torch" and kernels_serve(logits, decoding):
        how = DecodingParams(temperature=decoding.temperature, confidence=decoding.confidence)
        kind = (logits.device, logits.dtype, logits.shape[1])
        if drawing == "kernel" or kernels_agree(*kind, banned, how):
            return fused(logits, seeds, positions, forwards, banned, decoding, wanted)
    return by_functions(logits, seeds, positions, forwards, banned, decoding)


def by_functions(
    logits: Float[Tensor, "M V"],
    seeds: Int64[Tensor, " M"],
    positions: Int64[Tensor, " M"],
    forwards: Int64[Tensor, " M"],
    banned: Spans,
    decoding: DecodingParams,
) -> Draws:
    """`draw_rows` by `dirl.diffusion.sampling`, on any device, with any cuts."""
    noise = uniform(seeds, positions, forwards)
    count = max(1, ROWS_BYTES // (4 * logits.shape[-1]))
    parts = [
        (*candidates(scaled_logits(part, banned, decoding.temperature), u, decoding), finite_rows(part))
        for part, u in zip(logits.split(count), noise.split(count), strict=True)
    ]
    return Draws(*parts[0]) if len(parts) == 1 else Draws(*map(torch.cat, zip(*parts, strict=True)))


def kernels_serve(logits: Float[Tensor, "M V"], decoding: DecodingParams) -> bool:
    """On CUDA, in at most fp32, where Triton is there and top-k, top-p or min-p cut nothing away."""
    return logits.is_cuda and logits.dtype != torch.float64 and not cuts(decoding) and _has_triton() and len(logits) > 0


def check_drawing(drawing: str, device: torch.device | None = None) -> None:
    """Raise ValueError for an engine's `drawing` that there is not, or not on this device."""
    if drawing not in ("auto", "kernel", "torch"):
        raise ValueError(f"engine.drawing={drawing!r}: use auto, kernel or torch")
    if drawing == "kernel" and device is not None and not (device.type == "cuda" and _has_triton()):
        lacking = "Triton is not installed" if device.type == "cuda" else f"the engine works on {device.type!r}"
        raise ValueError(f"engine.drawing='kernel': it needs CUDA and Triton, and {lacking}; use auto or torch")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def kernels_agree(
    device: torch.device, dtype: torch.dtype, vocabulary: int, banned: Spans, decoding: DecodingParams
) -> bool:
    """Whether the kernels draw what the functions draw, tried on a few random rows; a warning says it if not.

    It is asked once for each kind of logits, before the first draw of them, and waits for the device.
    """
    try:
        wrong = _difference(device, dtype, vocabulary, banned, decoding)
    except Exception as error:  # said below: a kernel that this device or Triton does not take is one not to use
        wrong = f"{type(error).__name__}: {error}"
    if wrong is not None:
        warnings.warn(
            f"the drawing kernels are not used on {device}, torch's functions are, which are slower: {wrong}",
            stacklevel=2,
        )
    return wrong is None


def _difference(
    device: torch.device, dtype: torch.dtype, vocabulary: int, banned: Spans, decoding: DecodingParams
) -> str | None:
    """How the two differ, more than by rounding."""
    generator = torch.Generator(device).manual_seed(0)
    logits = 4 * torch.randn(CHECKED_ROWS, vocabulary, generator=generator, device=device)
    logits[-1, vocabulary // 2] = torch.nan
    numbers = torch.arange(CHECKED_ROWS, device=device)
    given = (logits.to(dtype), numbers + (1 << 40), numbers + 100, numbers % 4, banned, decoding)
    made, expected = fused(*given, torch.ones_like(numbers, dtype=torch.bool)), by_functions(*given)
    if not torch.equal(made.finite, expected.finite):
        return "another answer to which logits are finite"
    good = expected.finite
    same = made.tokens == expected.tokens
    if int((~same & good).sum()) > CHECKED_ROWS // 16:
        return f"{int((~same & good).sum())} of {int(good.sum())} tokens are others"
    for name in ("logprobs", "confidence"):
        ours, theirs = (getattr(draws, name)[same & good] for draws in (made, expected))
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
            return f"{name} differ by {float((ours - theirs).abs().max()):.2g}"
    return None


def fused(
    logits: Float[Tensor, "M V"],
    seeds: Int64[Tensor, " M"],
    positions: Int64[Tensor, " M"],
    forwards: Int64[Tensor, " M"],
    banned: Spans,
    decoding: DecodingParams,
    wanted: Bool[Tensor, " M"] | None = None,
) -> Draws:
    """`draw_rows` by the kernels, which take no cuts. No wait of the host, nothing of the size of the logits."""
    from dirl.diffusion import drawing_kernels as kernels

    rows, vocabulary = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tiles = -(-vocabulary // kernels.TILE)
    new = logits.new_empty
    largest, masses = new((rows, tiles), dtype=torch.float32), new((rows, tiles), dtype=torch.float64)
    places = new((rows, tiles), dtype=torch.int32)
    zeros = logits.new_zeros
    out = (
        zeros(rows, dtype=torch.long),
        zeros(rows, dtype=torch.float32),
        zeros(rows, dtype=torch.float32),
        logits.new_ones(rows, dtype=torch.bool),
    )
    spans = _spans_on(banned, logits.device)
    columns = [x.expand(rows).contiguous() for x in (seeds, positions, forwards)]
    some = wanted is not None
    chosen = wanted.contiguous() if wanted is not None else out[3]
    tables = (logits, chosen, spans, largest, masses, places)
    sizes = (logits.stride(0), vocabulary, len(banned), decoding.temperature or 1.0)
    kernels.tile_masses[(rows, tiles)](*tables, *sizes, SOME=some, SIZE=kernels.TILE, num_warps=8)
    kernels.draw_tokens[(rows,)](
        *tables,
        *columns,
        *out,
        *sizes,
        tiles,
        SOME=some,
        GREEDY=decoding.temperature == 0,
        BEST=decoding.confidence == "max",
        SIZE=kernels.TILE,
        TILES=max(2, 1 << (tiles - 1).bit_length()),
        num_warps=8,
    )
    return Draws(*out)


@cache
def _spans_on(banned: Spans, device: torch.device) -> Tensor:
    """Kept: to copy it in every step would have the host wait."""
    return torch.tensor(banned or ((0, 0),), dtype=torch.long).to(device)
