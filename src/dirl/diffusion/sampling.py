"""The way from logits to drawn tokens: temperature, cuts, confidence, and seeded draws that ignore the batch.

The engine samples with these functions and the trainer scores with them, so that both mean the same
distribution by one set of settings.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from dirl.spans import Spans
from dirl.types import DecodingParams

SPAN = 512
"""Tokens whose probabilities `draw` sums first."""


def scaled_logits(logits: Float[Tensor, "*rows V"], banned: Spans, temperature: float) -> Float[Tensor, "*rows V"]:
    """z = logits / temperature in at least fp32 with banned ids at -inf. Temperature 0 counts as 1.

    Args:
        banned: `ModelSpec.banned`.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature not in (0.0, 1.0):
        z = z / temperature if z is logits else z.div_(temperature)
    if z is logits:
        z = z.clone()
    return ban_(z, banned)


def ban_(z: Float[Tensor, "*rows V"], banned: Spans) -> Float[Tensor, "*rows V"]:
    """z itself with banned ids at -inf: a fill of some columns for each range, nothing of its size is made."""
    for first, end in banned:
        z[..., first:end] = float("-inf")
    return z


def finite_rows(logits: Float[Tensor, "*rows V"]) -> Bool[Tensor, "*rows"]:
    """Whether all logits of a row are finite, by their sum: nothing of their size is made."""
    narrow = logits.dtype == torch.float16  # which the sum of a vocabulary does not fit
    return logits.sum(-1, dtype=torch.float32 if narrow else logits.dtype).isfinite()


def cuts(decoding: DecodingParams) -> bool:
    """Whether top-k, top-p or min-p take anything away from the distribution; greedy decoding has none to cut."""
    return decoding.temperature > 0 and (decoding.top_k > 0 or decoding.top_p < 1 or decoding.min_p > 0)


def cut_logits(z: Float[Tensor, "*rows V"], decoding: DecodingParams) -> Float[Tensor, "*rows V"]:
    """z with the tokens that top-k, then top-p, then min-p exclude at -inf.

    top-p drops a token when the probability before it, in descending order, already exceeds top_p; the
    first token always stays. Ties keep the order of a stable descending sort.
    """
    if not cuts(decoding):
        return z
    if decoding.top_p == 1 and decoding.min_p == 0:
        return _most_probable(z, decoding.top_k)
    ordered, index = z.sort(dim=-1, descending=True, stable=True)
    if decoding.top_k > 0:
        rank = torch.arange(z.shape[-1], device=z.device)
        ordered = ordered.masked_fill(rank >= decoding.top_k, float("-inf"))
    if decoding.top_p < 1:
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs > decoding.top_p
        drop[..., 0] = False
        ordered = ordered.masked_fill(drop, float("-inf"))
    if decoding.min_p > 0:
        probs = ordered.softmax(-1)
        ordered = ordered.masked_fill(probs < decoding.min_p * probs[..., :1], float("-inf"))
    return torch.empty_like(z).scatter_(-1, index, ordered)


def _most_probable(z: Tensor, count: int) -> Tensor:
    """z with all but the `count` largest of each row at -inf, of equals the leftmost; sorts no vocabulary."""
    last = z.topk(min(count, z.shape[-1])).values[..., -1:]
    above, equal = ~(z <= last), z == last  # NaN counts as above, so that it spoils the row and is found
    wanted = count - above.sum(-1, keepdim=True)
    return z.masked_fill(~(above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= wanted))), float("-inf"))


def uniform(
    seeds: Int64[Tensor, "*#draws"], positions: Int64[Tensor, "*#draws"], forwards: Int64[Tensor, "*#draws"]
) -> Float64[Tensor, "*#draws"]:
    """Uniform numbers in [0, 1), float64, as a pure function of (seed, absolute position, forward index).

    Counter-based (splitmix64 finaliser), so a request draws the same numbers whatever else is in the batch
    and on whatever device. The three int64 arguments broadcast.
    """
    x = _mix(seeds + _GOLDEN)
    x = _mix(x ^ (positions * _STREAM_1 + _GOLDEN))
    x = _mix(x ^ (forwards * _STREAM_2 + _GOLDEN))
    return _shift(x, 11).double() * 2.0**-53


def candidates(
    z: Float[Tensor, "M V"], noise: Float[Tensor, " M"], decoding: DecodingParams
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"], Float[Tensor, " M"]]:
    """A candidate token per row of z: token, its log-probability as drawn, and its confidence."""
    full = z.softmax(-1)
    drawn = cut_logits(z, decoding).softmax(-1) if cuts(decoding) else full
    tokens = z.argmax(-1) if decoding.temperature == 0 else _draw(drawn, noise)
    probability = drawn.gather(-1, tokens[:, None]).squeeze(-1)
    if decoding.confidence == "max":
        return tokens, probability.log(), full.amax(-1)
    return tokens, probability.log(), full.gather(-1, tokens[:, None]).squeeze(-1)


def draw(z: Float[Tensor, "*rows V"], u: Float[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
    """Inverse-CDF draw of token ids from softmax(z), with u in [0, 1)."""
    return _draw(z.softmax(-1), u)


def _draw(probs: Tensor, u: Tensor) -> Tensor:
    """In two levels, so that only sums of `SPAN` probabilities and the span that is hit are kept in float64."""
    vocab = probs.shape[-1]
    parts = probs[..., : vocab // SPAN * SPAN].unflatten(-1, (vocab // SPAN, SPAN)), probs[..., vocab // SPAN * SPAN :]
    mass = torch.cat([parts[0].sum(-1, dtype=torch.float64), parts[1].sum(-1, True, dtype=torch.float64)], -1)
    reached = mass.cumsum(-1)
    target = u * reached[..., -1]
    span = _reached(reached, target)
    inside = span[..., None] * SPAN + torch.arange(SPAN, device=probs.device)
    hit = probs.gather(-1, inside.clamp_max(vocab - 1)).double().masked_fill(inside >= vocab, 0.0)
    before = (reached - mass).gather(-1, span[..., None]).squeeze(-1)
    return span * SPAN + _reached(hit.cumsum(-1), (target - before).clamp_min(0))


def _reached(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative value exceeds the target, which rounding may have put past the last: [...]."""
    index = torch.searchsorted(cumulative, target[..., None], right=True).squeeze(-1)
    last = (cumulative < cumulative[..., -1:]).sum(-1)  # of positive probability
    return torch.minimum(index, last)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_STREAM_1 = _signed(0xD1B54A32D192ED03)
_STREAM_2 = _signed(0x8CB92BA72F3D8DD7)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)
