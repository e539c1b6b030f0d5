"""Which masked positions a denoising step commits: the three strategies, one function each."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dirl.types import DecodingParams


def commit(
    confidence: Float[Tensor, "N B"], masked: Bool[Tensor, "N B"], decoding: DecodingParams, block_size: int
) -> Bool[Tensor, "N B"]:
    """Positions that get their candidate token in this denoising step.

    Args:
        confidence: probability of the candidate (or of the best token) at each position.
        masked: positions still masked.

    Returns:
        a subset of `masked`; at least one position of every row that has a masked one.
    """
    if decoding.strategy == "low_confidence_dynamic":
        return most_confident(confidence, masked, 1) | (masked & (confidence >= decoding.threshold))
    if decoding.strategy == "low_confidence_static":
        return most_confident(confidence, masked, decoding.quota(block_size))
    return leftmost(masked, decoding.quota(block_size))


def most_confident(confidence: Float[Tensor, "*N B"], masked: Bool[Tensor, "*N B"], count: int) -> Bool[Tensor, "*N B"]:
    """The `count` masked positions of highest confidence; the leftmost of equals."""
    order = confidence.masked_fill(~masked, -1.0).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(masked).scatter(-1, order[..., :count], True)
    return chosen & masked


def leftmost(masked: Bool[Tensor, "*N B"], count: int) -> Bool[Tensor, "*N B"]:
    """The first `count` masked positions."""
    return masked & (masked.cumsum(-1) <= count)
