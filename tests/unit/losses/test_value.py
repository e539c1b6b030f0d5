"""The value's loss: against the equation, its gradient by differences, and explained variance by numpy."""

import numpy as np
import pytest
import torch
from tests.reference import naive_value_error

from dirl.losses.value import clipped_squared_error, explained_variance


def numbers(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(400, generator=generator, dtype=torch.float64) * scale for scale in (1.0, 0.8, 1.0)]


@pytest.mark.parametrize("clip", [0.2, 0.7, None])
def test_loss_and_gradient_are_those_of_the_equation(clip: float | None) -> None:
    values, old, returns = numbers(0)
    values.requires_grad_()
    loss, clipped = clipped_squared_error(values, old, returns, clip)
    slopes, size = torch.autograd.grad(loss.sum(), values)[0], 1e-6
    for i, v in enumerate(values.tolist()):
        at = [naive_value_error(v + d, float(old[i]), float(returns[i]), clip) for d in (0, -size, size)]
        assert float(loss[i]) == pytest.approx(at[0], rel=1e-12)
        assert float(slopes[i]) == pytest.approx((at[2] - at[1]) / (2 * size), abs=1e-6)
        assert bool(clipped[i]) == (clip is not None and float(slopes[i]) == 0.0)
    assert clipped.any() == (clip is not None) and not clipped.all()


def test_a_value_that_has_not_moved_has_the_gradient_of_the_plain_square() -> None:
    values, _, returns = numbers(1)
    values.requires_grad_()
    loss, _ = clipped_squared_error(values, values.detach(), returns, 0.2)
    assert torch.allclose(torch.autograd.grad(loss.sum(), values)[0], (values - returns).detach())


def test_explained_variance_is_numpys() -> None:
    values, _, returns = numbers(2)
    values = values + 0.7 * returns + 3
    error = returns - values
    found = explained_variance(
        torch.tensor(400.0), returns.sum(), returns.square().sum(), error.sum(), error.square().sum()
    )
    wanted = 1 - np.var(error.numpy()) / np.var(returns.numpy())
    assert found == pytest.approx(wanted)


def test_returns_without_spread_leave_nothing_to_explain() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    assert explained_variance(4 * one, 4 * one, 4 * one, one, one) is None
    assert explained_variance(0 * one, 0 * one, 0 * one, 0 * one, 0 * one) is None
