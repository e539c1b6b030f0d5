"""SFT's loss, worked by hand."""

import math

import pytest
import torch

from dirl.losses import weighted_cross_entropy


def test_cross_entropy_is_weighted_and_divided_as_told() -> None:
    logprobs, weights = torch.tensor([0.5, 0.25]).log(), torch.tensor([2.0, 4.0])
    assert weighted_cross_entropy(logprobs, weights, 5.0).item() == pytest.approx((2 + 8) * math.log(2) / 5)
