"""FLOPs against torch's counter on the real model, and by hand."""

import pytest
import torch
from tests.unit.planning.rehearsal import build, fake_tensors, row
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from dirl.models.families import family_of
from dirl.modules.layers import recompute_layers
from dirl.planning import ModelShape, Work, training_flops
from dirl.planning.flops import forward_flops

DENSE = ModelShape(64, 96, 4, 4, 2, 16, 200, False, dense_layers=4)
EXPERTS = ModelShape(64, 96, 2, 4, 2, 16, 200, False, 8, 2, 48)
LLADA2 = ModelShape(64, 96, 3, 4, 2, 16, 200, False, 8, 2, 48, 1, shared_expert_size=48, fused=True)
TOKENS, SCORED = 96, 20


ROTARY = 1e-4
"""Some versions of transformers compute the angles of the rotary embedding as a product, which is counted then."""


def plain_attention(module: object, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: object):
    """Every query sees every key: two products that the counter knows, forward, and four in the backward."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    return ((query @ key.mT).softmax(-1) @ value).transpose(1, 2), None


def counted(shape: ModelShape, mode: str = "none") -> tuple[float, float]:
    """FLOPs of products in the forward, and in the backward, of a row of one block that sees all of itself."""
    AttentionInterface.register("plain", plain_attention)
    model = build(shape, attention="plain")
    recompute_layers(model.model.layers, mode)
    grouped = {torch.ops.aten._grouped_mm: grouped_flops}  # torch's counter does not know it
    with FlopCounterMode(display=False, custom_mapping=grouped) as forward:
        hidden = model.model(**row(TOKENS)).last_hidden_state[0, :SCORED]
        logits = model.lm_head(hidden)
    with FlopCounterMode(display=False, custom_mapping=grouped) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def grouped_flops(left: list[int], right: list[int], *_: object, **__: object) -> int:
    """Of the shapes: each row of the left [S, K] meets one matrix; or, for weights, each pair of rows meets once."""
    return 2 * left[0] * left[1] * right[-1]


@pytest.mark.parametrize("shape", [DENSE, EXPERTS, LLADA2])
def test_forward_and_backward_are_what_the_counter_counts(shape: ModelShape) -> None:
    forward, backward = counted(shape)
    work = Work(TOKENS, TOKENS**2, SCORED)
    ours = training_flops(shape, work, "none")
    assert ours.forward.total == pytest.approx(forward, rel=ROTARY)
    assert ours.backward.total == pytest.approx(backward, rel=ROTARY)
    assert ours.model == ours.forward.total * 3


def test_a_shared_experts_last_product_is_the_one_that_is_not_computed_again() -> None:
    _, plain = counted(LLADA2)
    _, backward = counted(LLADA2, "full")
    work = Work(TOKENS, TOKENS**2, 0)
    forward, again = forward_flops(LLADA2, work), training_flops(LLADA2, work, "full").recomputed
    assert again.total - forward.attention / 2 == pytest.approx(backward - plain, rel=1e-3)


@pytest.mark.parametrize(("mode", "share"), [("none", 0.0), ("full", 1.0), ("selective", 0.5)])
def test_recomputed_layers_are_counted_apart(mode: str, share: float) -> None:
    _, plain = counted(DENSE)
    _, backward = counted(DENSE, mode)
    work = Work(TOKENS, TOKENS**2, 0)
    forward, again = forward_flops(DENSE, work), training_flops(DENSE, work, mode).recomputed
    # a fused kernel computes scores again in every backward; plain attention keeps them
    assert again.total - forward.attention / 2 == pytest.approx(backward - plain, rel=1e-6)
    assert again.attention - forward.attention / 2 == share * forward.attention


def test_attention_is_counted_by_visible_pairs_and_the_head_by_scored_positions() -> None:
    flops = forward_flops(DENSE, Work(10, 7, 3))
    assert flops.attention == 4 * 7 * 64 * 4  # two products, pairs, heads x head_dim, layers
    assert flops.head == 2 * 3 * 64 * 200
    assert flops.dense == 10 * 2 * 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)


def test_an_8b_forward_is_two_flops_for_each_parameter_and_token() -> None:
    with fake_tensors():
        model = build(ModelShape(4096, 12288, 1, 32, 8, 128, 1000, False, dense_layers=1))
        products = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    shape = family_of(model.config).shape(model.config)
    assert forward_flops(shape, Work(tokens=5)).dense == 2 * 5 * products
