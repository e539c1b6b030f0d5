"""The tests hold tensor functions against the shapes that their annotations name."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from dirl.batches import Layout
from dirl.diffusion.commit import leftmost
from dirl.diffusion.sampling import draw
from dirl.losses import weighted_cross_entropy
from dirl.losses.policy import k3
from dirl.models.head import target_scores
from dirl.types import DecodingParams


@pytest.mark.parametrize(
    "call",
    [
        lambda: weighted_cross_entropy(torch.zeros(3), torch.zeros(1), 1.0),  # torch would broadcast it
        lambda: k3(torch.zeros(3), torch.zeros(3, 1)),
        lambda: draw(torch.zeros(2, 5), torch.zeros(3)),
        lambda: leftmost(torch.ones(2, 4), 1),  # no bool
        lambda: target_scores(torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(1).long(), (), DecodingParams()),
        lambda: Layout(*(torch.zeros(length).long() for length in (3, 3, 3, 1))),
    ],
    ids=["weighted_cross_entropy", "k3", "draw", "leftmost", "target_scores", "Layout"],
)
def test_a_tensor_of_another_shape_or_type_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()
