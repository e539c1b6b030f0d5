"""Drawing in two Triton kernels: from logits to token, log-probability and confidence, and no table of their size.

`tile_masses` reads all logits once and keeps the largest and the sum of each tile of a row; `draw_tokens` finds by them
the tile in which the inverse CDF reaches the uniform number, and reads that tile again. Import it only where there is
Triton; `dirl.diffusion.drawing` does.
"""

import triton
import triton.language as tl

TILE = 4096

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_STREAM_1 = tl.constexpr(0xD1B54A32D192ED03)
_STREAM_2 = tl.constexpr(0x8CB92BA72F3D8DD7)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def tile_masses(
    logits,  # [M, V]
    wanted,  # [M] bool, read if SOME
    banned,  # [spans, 2] int64
    largest,  # [M, tiles] fp32 out
    masses,  # [M, tiles] fp64 out: sum of exp(z - largest); NaN where a logit is not finite
    places,  # [M, tiles] int32 out: where the largest is
    stride,
    vocabulary,
    spans,
    temperature,
    SOME: tl.constexpr,
    SIZE: tl.constexpr,
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if SOME:  # noqa: SIM102 - the one is known when it is compiled
        if tl.load(wanted + row) == 0:
            return
    raw, z = _tile(logits, row, tile, banned, stride, vocabulary, spans, temperature, SIZE)
    broken = tl.max(((raw - raw) != 0).to(tl.int32), 0)
    top, place = tl.max(z, 0), tl.argmax(z, 0)
    mass = tl.sum(tl.exp(z - tl.where(top == float("-inf"), 0.0, top)).to(tl.float64), 0)
    at = row * tl.num_programs(1) + tile
    tl.store(largest + at, top)
    tl.store(masses + at, tl.where(broken > 0, float("nan"), mass))
    tl.store(places + at, place.to(tl.int32))


@triton.jit
def draw_tokens(
    logits,
    wanted,
    banned,
    largest,
    masses,
    places,
    seeds,  # [M] int64, as positions and forwards
    positions,
    forwards,
    tokens,  # [M] int64 out; 0 where nothing is wanted
    logprobs,  # [M] fp32 out
    confidence,  # [M] fp32 out
    finite,  # [M] bool out
    stride,
    vocabulary,
    spans,
    temperature,
    tiles,
    SOME: tl.constexpr,
    GREEDY: tl.constexpr,
    BEST: tl.constexpr,  # the confidence is that of the best token
    SIZE: tl.constexpr,
    TILES: tl.constexpr,  # a power of two, `tiles` or more
):
    row = tl.program_id(0).to(tl.int64)
    if SOME:  # noqa: SIM102 - the one is known when it is compiled
        if tl.load(wanted + row) == 0:
            return
    numbers = tl.arange(0, TILES)
    at, there = row * tiles + numbers, numbers < tiles
    tops = tl.load(largest + at, mask=there, other=float("-inf"))
    top = tl.max(tops, 0)
    mass = tl.load(masses + at, mask=there, other=0.0) * tl.exp((tops - top).to(tl.float64))
    reached = tl.cumsum(mass, 0)
    total = tl.max(reached, 0)
    total = tl.where(tl.sum((mass != mass).to(tl.int32), 0) > 0, float("nan"), total)
    if GREEDY:
        tile = tl.min(tl.where(tops == top, numbers, TILES - 1), 0)
        index = tl.load(places + row * tiles + tile)
        value = top
    else:
        target = _uniform(tl.load(seeds + row), tl.load(positions + row), tl.load(forwards + row)) * total
        tile = _first_above(reached, total, target)
        before = tl.sum(tl.where(numbers == tile, reached - mass, 0.0), 0)
        _, z = _tile(logits, row, tile, banned, stride, vocabulary, spans, temperature, SIZE)
        inside = tl.cumsum(tl.exp(z - top).to(tl.float64), 0)
        index = _first_above(inside, tl.max(inside, 0), tl.maximum(target - before, 0.0))
        value = tl.sum(tl.where(tl.arange(0, SIZE) == index, z, 0.0), 0)
    tl.store(tokens + row, tile.to(tl.int64) * SIZE + index)
    tl.store(logprobs + row, ((value - top).to(tl.float64) - tl.log(total)).to(tl.float32))
    best = top if BEST else value
    tl.store(confidence + row, (tl.exp((best - top).to(tl.float64)) / total).to(tl.float32))
    tl.store(finite + row, total == total)


@triton.jit
def _tile(logits, row, tile, banned, stride, vocabulary, spans, temperature, SIZE: tl.constexpr):
    """A tile's logits in fp32 (0 behind the end), and z: divided, -inf where banned or behind the end."""
    at = tile * SIZE + tl.arange(0, SIZE)
    inside = at < vocabulary
    raw = tl.load(logits + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    allowed = inside
    for span in range(spans):
        first, end = tl.load(banned + 2 * span), tl.load(banned + 2 * span + 1)
        allowed = allowed & ((at < first) | (at >= end))
    return raw, tl.where(allowed, tl.div_rn(raw, temperature), float("-inf"))


@triton.jit
def _first_above(reached, total, target):
    """As `dirl.diffusion.sampling._reached`: the first that exceeds the target, at most the last of some mass."""
    return tl.minimum(tl.sum((reached <= target).to(tl.int32), 0), tl.sum((reached < total).to(tl.int32), 0))


@triton.jit
def _uniform(seed, position, forward):
    """As `dirl.diffusion.sampling.uniform`, bit for bit."""
    x = _mix(seed.to(tl.uint64) + _GOLDEN)
    x = _mix(x ^ (position.to(tl.uint64) * _STREAM_1 + _GOLDEN))
    x = _mix(x ^ (forward.to(tl.uint64) * _STREAM_2 + _GOLDEN))
    return (x >> 11).to(tl.int64).to(tl.float64) * (1.0 / 9007199254740992)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)
