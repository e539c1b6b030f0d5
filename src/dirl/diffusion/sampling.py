"""From logits to drawn tokens: temperature, cuts, confidence, and seeded draws that ignore the batch.

The engine samples with these functions and the trainer scores with them, so that both mean the same
distribution by one set of settings.
"""

import torch
from torch import Tensor

from dirl.types import DecodingParams


def scaled_logits(logits: Tensor, mask_token_id: int, temperature: float) -> Tensor:
    """z = logits / temperature in at least fp32 with the mask token at -inf, [..., V]. Temperature 0 counts as 1."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature not in (0.0, 1.0):
        z = z / temperature
    banned = torch.arange(z.shape[-1], device=z.device) == mask_token_id
    return z.masked_fill(banned, float("-inf"))


def cuts(params: DecodingParams) -> bool:
    """Whether top-k, top-p or min-p take anything away from the distribution; greedy decoding has none to cut."""
    return params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def cut_logits(z: Tensor, params: DecodingParams) -> Tensor:
    """z [..., V] with the tokens that top-k, then top-p, then min-p exclude at -inf.

    top-p drops a token when the probability before it, in descending order, already exceeds top_p; the
    first token always stays. Ties keep the order of a stable descending sort.
    """
    if not cuts(params):
        return z
    ordered, index = z.sort(dim=-1, descending=True, stable=True)
    if params.top_k > 0:
        rank = torch.arange(z.shape[-1], device=z.device)
        ordered = ordered.masked_fill(rank >= params.top_k, float("-inf"))
    if params.top_p < 1:
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs > params.top_p
        drop[..., 0] = False
        ordered = ordered.masked_fill(drop, float("-inf"))
    if params.min_p > 0:
        probs = ordered.softmax(-1)
        ordered = ordered.masked_fill(probs < params.min_p * probs[..., :1], float("-inf"))
    return torch.empty_like(z).scatter(-1, index, ordered)


def uniform(seeds: Tensor, positions: Tensor, forwards: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64, as a pure function of (seed, absolute position, forward index).

    Counter-based (splitmix64 finaliser), so a request draws the same numbers whatever else is in the batch
    and on whatever device. The three int64 arguments broadcast.
    """
    x = _mix(seeds + _GOLDEN)
    x = _mix(x ^ (positions * _STREAM_1 + _GOLDEN))
    x = _mix(x ^ (forwards * _STREAM_2 + _GOLDEN))
    return _shift(x, 11).double() * 2.0**-53


def draw(z: Tensor, u: Tensor) -> Tensor:
    """Inverse-CDF draw from softmax(z): z [..., V], u [...] in [0, 1) -> token ids [...]."""
    cumulative = z.double().softmax(-1).cumsum(-1)
    token = torch.searchsorted(cumulative, (u * cumulative[..., -1])[..., None], right=True).squeeze(-1)
    # u * total can reach the last edge by rounding: fall back to the last token of positive probability.
    last = (cumulative < cumulative[..., -1:]).sum(-1)
    return torch.minimum(token, last)


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
