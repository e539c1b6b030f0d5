"""Segment attention and the attention function of the layers, against SDPA under the dense mask of the rule."""

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tests import reference
from tests.reference import Token
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dirl.attention import build_mask
from dirl.attention.backend import masked_attention
from dirl.attention.segments import SegmentMask, segment_attention, segment_mask
from dirl.types import Layout

EXACT = {"atol": 1e-5, "rtol": 1e-5}
"""fp32: the same sums of up to a hundred terms of order one, in another order."""
HEADS = {"one group of heads": (4, 4), "grouped heads": (4, 2), "one key head": (3, 1)}
SCALE = 0.3


def layout_of(tokens: list[Token]) -> Layout:
    return Layout(*torch.tensor(tokens).T.contiguous())


def runs(group: int, branch: int, block_views: list[tuple[int, int]], size: int) -> list[Token]:
    return [Token(group, branch, block, view) for block, view in block_views for _ in range(size)]


def random_groups(seed: int) -> list[Token]:
    """Groups with and without a prompt, with responses of different lengths, and of a single branch, as SFT has it."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 4])
    tokens: list[Token] = []
    for group in range(rng.randint(2, 4)):
        prompt = rng.randint(0, 4)
        tokens += runs(group, 0, [(block, 0) for block in range(prompt)], size)
        for branch in range(1, rng.randint(0, 3) + 1):
            tokens += runs(group, branch, response(rng, prompt), size)
    return tokens + sft_example(rng, group=9, size=size)


def response(rng: random.Random, first: int) -> list[tuple[int, int]]:
    last = first + rng.randint(0, 3)
    clean = [(block, 0) for block in range(first, last)]
    return clean + [(block, view) for block in range(first, last + 1) for view in range(1, rng.randint(1, 3) + 1)]


def sft_example(rng: random.Random, group: int, size: int) -> list[Token]:
    """A branch 0 that holds noised views too."""
    clean = [(block, 0) for block in range(4)]
    return runs(
        group, 0, clean + [(block, view) for block in (1, 3, 4) for view in range(1, rng.randint(1, 2) + 1)], size
    )


def case(tokens: list[Token], heads: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query [1, H, T, D], key and value [1, Hkv, T, D], all with gradients; and a gradient for [1, T, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    query_heads, key_heads = heads
    shapes = [(1, n, len(tokens), 8) for n in (query_heads, key_heads, key_heads)]
    query, key, value = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return query, key, value, torch.randn((1, len(tokens), query_heads, 8), generator=generator)


def oracle(query: Tensor, key: Tensor, value: Tensor, tokens: list[Token]) -> Tensor:
    """[1, T, H, D] by SDPA under the dense mask, key heads repeated by hand."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=reference.dense_mask(tokens), scale=SCALE
    ).transpose(1, 2)


# ------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("seed", range(6))
def test_outputs_and_gradients_are_those_of_sdpa_under_the_dense_mask(seed: int, heads: tuple[int, int]) -> None:
    tokens = random_groups(seed)
    query, key, value, upstream = case(tokens, heads, seed)
    wanted = oracle(query, key, value, tokens)
    found = segment_attention(query, key, value, segment_mask(layout_of(tokens)), SCALE)
    torch.testing.assert_close(found, wanted, **EXACT)
    gradients = torch.autograd.grad(found, [query, key, value], upstream)
    for gradient, exact in zip(gradients, torch.autograd.grad(wanted, [query, key, value], upstream), strict=True):
        torch.testing.assert_close(gradient, exact, **EXACT)


@pytest.mark.parametrize(
    "tokens",
    {
        "one token": [Token(0, 0, 0, 0)],
        "one SFT example": sft_example(random.Random(0), 0, 2),
        "a prompt alone": runs(0, 0, [(0, 0), (1, 0)], 2),
        "responses without a prompt": runs(0, 1, [(0, 0), (0, 1), (1, 1)], 2) + runs(0, 2, [(0, 1)], 2),
        "two groups of one branch number": runs(0, 1, [(0, 1)], 4) + runs(1, 1, [(0, 1), (0, 2)], 4),
        "a group without a prompt after one with": runs(0, 0, [(0, 0)], 4) + runs(1, 1, [(0, 0), (1, 1)], 4),
    }.values(),
    ids=lambda tokens: f"{len(tokens)} tokens",
)
def test_small_layouts_are_exact(tokens: list[Token]) -> None:
    query, key, value, _ = case(tokens, (2, 1), seed=0)
    found = segment_attention(query, key, value, segment_mask(layout_of(tokens)), SCALE)
    torch.testing.assert_close(found, oracle(query, key, value, tokens), **EXACT)


def test_padding_carries_no_gradient_and_no_nan() -> None:
    """Segments of 1 and 40 tokens: the short one is padded with copies of position 0, which must stay out of it."""
    tokens = runs(0, 1, [(0, 0)], 1) + runs(1, 1, [(b, 0) for b in range(40)], 1)
    query, key, value, upstream = case(tokens, (2, 2), seed=1)
    upstream[:, 0] = 0
    found = segment_attention(query, key, value, segment_mask(layout_of(tokens)), SCALE)
    for gradient in torch.autograd.grad(found, [query, key, value], upstream):
        assert gradient.isfinite().all()
        assert not gradient[:, :, 0].any(), "position 0 got the gradient of padding"


# ------------------------------------------------------------------------------------------------- the plan


def test_a_segment_reads_its_prompt_and_itself_and_no_other_keys() -> None:
    tokens = runs(0, 0, [(0, 0), (1, 0)], 2) + runs(0, 1, [(2, 1)], 2) + runs(0, 2, [(2, 1), (2, 2)], 2)
    mask = segment_mask(layout_of(tokens))
    assert mask.query_index.tolist() == [[0, 1, 2, 3], [4, 5, 0, 0], [6, 7, 8, 9]]
    assert mask.key_index.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 0, 0], [0, 1, 2, 3, 6, 7, 8, 9]]
    assert mask.output_index.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert mask.allowed.shape == (3, 1, 4, 8)


def test_a_branch_in_two_pieces_is_refused() -> None:
    tokens = runs(0, 1, [(0, 0)], 2) + runs(0, 2, [(0, 0)], 2) + runs(0, 1, [(1, 0)], 2)
    with pytest.raises(AssertionError, match="not contiguous"):
        segment_mask(layout_of(tokens))


# ---------------------------------------------------------------------------------- what transformers' layers call


@pytest.mark.parametrize("backend", ["dense", "segments", "flex", "auto"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as is meant on CPU
def test_every_backend_gives_the_layers_the_same_attention(backend: str) -> None:
    tokens = random_groups(3)
    query, key, value, _ = (x.detach() for x in case(tokens, (4, 2), seed=3))
    mask = build_mask(layout_of(tokens), backend)
    found, weights = masked_attention(SimpleNamespace(head_dim=8), query, key, value, mask, scaling=SCALE)
    assert weights is None
    torch.testing.assert_close(found, oracle(query, key, value, tokens), **EXACT)


def test_without_a_scale_the_layers_get_that_of_their_head_size() -> None:
    tokens = random_groups(0)
    query, key, value, _ = case(tokens, (2, 2), seed=0)
    mask = build_mask(layout_of(tokens), "segments")
    found, _ = masked_attention(SimpleNamespace(head_dim=8), query, key, value, mask)
    torch.testing.assert_close(found, oracle(query * (8**-0.5 / SCALE), key, value, tokens), **EXACT)


def test_auto_is_segments_where_there_is_no_gpu() -> None:
    layout = layout_of(random_groups(0))
    assert isinstance(build_mask(layout), SegmentMask)
    assert isinstance(build_mask(layout, "flex"), BlockMask)


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="attention='fast': use auto, flex, segments or dense"):
        build_mask(layout_of([Token(0, 0, 0, 0)]), "fast")


def test_a_mask_of_another_kind_is_refused_by_name() -> None:
    query = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match=r"NoneType: use dirl\.attention\.build_mask"):
        masked_attention(SimpleNamespace(head_dim=8), query, query, query, None)
