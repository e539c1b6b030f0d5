"""The loss of a value model: squared errors, clipped around the old values. Pure functions of tensors."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_squared_error(
    values: Float[Tensor, " N"],
    old_values: Float[Tensor, " N"],
    returns: Float[Tensor, " N"],
    clip: float | None,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """max((V - R)^2, (V_clip - R)^2) / 2 with V_clip = V_old + clip(V - V_old, -clip, clip); and where it is constant.

    TraceRL (arXiv:2509.06949), eq. 4: a value that has moved towards its return by more than `clip` is left alone.
    """
    error = (values - returns).square()
    if clip is None:
        return error / 2, torch.zeros_like(values, dtype=torch.bool)
    moved = values - old_values
    bounded = (old_values + moved.clamp(-clip, clip) - returns).square()
    constant = (bounded > error) & (moved.abs() > clip)  # within the clip they differ by rounding alone
    return torch.maximum(error, bounded) / 2, constant.detach()


def explained_variance(
    count: Float[Tensor, ""],
    total: Float[Tensor, ""],
    squares: Float[Tensor, ""],
    error: Float[Tensor, ""],
    error_squares: Float[Tensor, ""],
) -> float | None:
    """1 - Var(R - V) / Var(R) from sums over tokens; None where the returns are all the same.

    Args:
        total, squares: of the returns R.
        error, error_squares: of R - V.
    """
    spread = squares / count - (total / count) ** 2
    if not count or spread <= 1e-12 * squares / count:
        return None
    return float(1 - (error_squares / count - (error / count) ** 2) / spread)
