"""Experts on a GPU: the grouped product against one product for each, at the sizes of SDAR-30B-A3B."""

import pytest
import torch
from torch import Tensor, nn

from dirl.models.experts import Product, grouped_product, looped_product, weighted_experts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOKENS, WIDTH, INNER, EXPERTS, CHOSEN = 4096, 2048, 768, 128, 8


def operands(busy: int) -> list[Tensor]:
    """Hidden states, choices among the first `busy` experts, weights, and the two matrices of each expert."""
    torch.manual_seed(0)
    like = {"device": "cuda", "dtype": torch.bfloat16}
    hidden = torch.randn(TOKENS, WIDTH, **like)
    index = torch.rand(TOKENS, busy, device="cuda").topk(CHOSEN).indices
    weights = torch.rand(TOKENS, CHOSEN, device="cuda").softmax(-1).bfloat16()
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH, **like) * WIDTH**-0.5
    down = torch.randn(EXPERTS, WIDTH, INNER, **like) * INNER**-0.5
    return [hidden, index, weights, gate_up, down]


def output_and_gradients(product: Product, tensors: list[Tensor]) -> list[Tensor]:
    hidden, index, weights, gate_up, down = (t.detach().requires_grad_(t.is_floating_point()) for t in tensors)
    out = weighted_experts(hidden, index, weights, gate_up, down, nn.functional.silu, product)
    return [out, *torch.autograd.grad(out, (hidden, weights, gate_up, down), torch.ones_like(out))]


@pytest.mark.parametrize("busy", [EXPERTS, 40], ids=["all experts", "most experts idle"])
def test_grouped_experts_are_the_loop_and_the_host_never_waits(busy: int) -> None:
    tensors = operands(busy)
    wanted = output_and_gradients(looped_product, tensors)
    output_and_gradients(grouped_product, tensors)  # what is loaded lazily may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = output_and_gradients(grouped_product, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for value, expected in zip(found, wanted, strict=True):
        distance = (value.float() - expected.float()).norm() / expected.float().norm()
        assert distance < 1e-2, "both are products in bf16 with fp32 sums, in another order"
    assert busy == EXPERTS or not found[3][busy:].any(), "a gradient of an idle expert that is not 0"
