"""SFT's loss: cross-entropy on masked positions, weighted by 1/t (DiRL, eq. 3)."""

from jaxtyping import Float
from torch import Tensor


def weighted_cross_entropy(
    logprobs: Float[Tensor, " N"], weights: Float[Tensor, " N"], divisor: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    """-(sum of weight * log p) / divisor over masked positions [N]; the divisor counts response tokens."""
    return -(logprobs * weights).sum() / divisor
