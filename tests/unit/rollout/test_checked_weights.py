"""The one check of pushed weights: names, shapes, and numbers that are not finite, whichever engine asks."""

import pytest
import torch

from dirl.finite import NotFiniteError
from dirl.rollout.weights import checked

SHAPES = {"a": torch.Size([4, 4]), "b": torch.Size([3])}


def weights(**changed: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return list(({"a": torch.ones(4, 4), "b": torch.ones(3)} | changed).items())


def test_all_that_is_expected_comes_through_as_it_came() -> None:
    given = weights()
    assert [(n, v.data_ptr()) for n, v in checked(given, SHAPES, 0)] == [(n, v.data_ptr()) for n, v in given]


def test_a_name_or_a_shape_is_refused_before_the_weight_is_handed_on() -> None:
    with pytest.raises(ValueError, match="weight 'c' is unknown to the engine's model"):
        list(checked(weights(c=torch.ones(1)), SHAPES, 0))
    taken = checked(weights(b=torch.ones(2)), SHAPES, 0)
    assert next(taken)[0] == "a"
    with pytest.raises(ValueError, match=r"weight 'b' has shape \(2,\), the engine \(3,\)"):
        next(taken)


def test_what_never_came_is_named() -> None:
    with pytest.raises(ValueError, match=r"left out \['b'\]; an update must carry all weights"):
        list(checked(weights()[:1], SHAPES, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_in_any_precision(wrong: float, dtype: torch.dtype) -> None:
    value = torch.ones(4, 4, dtype=dtype)
    value[2, 1] = wrong
    with pytest.raises(NotFiniteError, match=r"policy version 5: 'a' \(1 in all\) holds numbers that are not finite"):
        list(checked(weights(a=value), SHAPES, 5))


def test_large_numbers_in_half_precision_are_finite() -> None:
    assert len(list(checked(weights(a=torch.full((4, 4), 6e4, dtype=torch.float16)), SHAPES, 0))) == 2
    assert len(list(checked(weights(a=torch.full((4, 4), 1e37, dtype=torch.bfloat16)), SHAPES, 0))) == 2


def test_whole_numbers_of_a_buffer_are_let_through() -> None:
    assert len(list(checked(weights(b=torch.arange(3)), SHAPES, 0))) == 2
