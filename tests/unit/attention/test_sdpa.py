"""SDPA of grouped heads, against torch's own under the same mask; held to its shapes here, as layers are compiled."""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError, jaxtyped
from tests.typechecker import check

from dirl.attention import sdpa

grouped_sdpa = jaxtyped(sdpa.grouped_sdpa, typechecker=check)
"""Not by the import hook: `torch.compile` of a layer goes through this function, and through no check."""


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("masks", [1, 2], ids=["one mask for all", "a mask each"])
def test_grouped_heads_are_attended_as_by_torch(heads: int, key_heads: int, masks: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, heads, 5, 8)
    key, value = torch.randn(2, 2, key_heads, 7, 8)
    mask = torch.rand(masks, 1, 5, 7) < 0.5
    mask[..., 0] = True
    found = grouped_sdpa(query, key, value, mask, 0.3)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # fp32 sums in another order


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        grouped_sdpa(*(torch.zeros(1, 2, 3, 4),) * 3, torch.ones(1, 1, 3, 2, dtype=torch.bool), 1.0)
