"""Which masked positions a denoising step commits: the three strategies, one function each."""

import torch
from torch import Tensor

from dirl.types import DecodingParams


def commit(confidence: Tensor, masked: Tensor, params: DecodingParams, block_size: int) -> Tensor:
    """Positions that get their candidate token in this step.

    Args:
        confidence: [N, B] probability of the candidate (or of the best token) at each position.
        masked: [N, B] bool, positions still masked.

    Returns:
        [N, B] bool, a subset of `masked`; at least one position of every row that has a masked one.
    """
    if params.strategy == "low_confidence_dynamic":
        return most_confident(confidence, masked, 1) | (masked & (confidence >= params.threshold))
    if params.strategy == "low_confidence_static":
        return most_confident(confidence, masked, params.quota(block_size))
    return leftmost(masked, params.quota(block_size))


def most_confident(confidence: Tensor, masked: Tensor, count: int) -> Tensor:
    """The `count` masked positions of highest confidence; the leftmost of equals."""
    order = confidence.masked_fill(~masked, -1.0).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(masked).scatter(-1, order[..., :count], True)
    return chosen & masked


def leftmost(masked: Tensor, count: int) -> Tensor:
    """The first `count` masked positions."""
    return masked & (masked.cumsum(-1) <= count)
