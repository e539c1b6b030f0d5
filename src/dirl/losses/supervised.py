"""SFT's loss: cross-entropy on masked positions, weighted by 1/t (DiRL, eq. 3)."""

from torch import Tensor


def weighted_cross_entropy(logprobs: Tensor, weights: Tensor, divisor: Tensor | float) -> Tensor:
    """-(sum of weight * log p) / divisor over masked positions [N]; the divisor counts response tokens."""
    return -(logprobs * weights).sum() / divisor
