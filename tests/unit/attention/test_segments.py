"""Segment attention and the attention function of the layers, against SDPA under the dense mask of the rule."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import jaxtyped
from tests import reference
from tests.reference import Token
from tests.typechecker import check
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode

from dirl.attention import backend, build_mask, dense_mask
from dirl.attention.segment_attention import segment_attention
from dirl.attention.segments import SegmentMask, segment_mask
from dirl.batches import Layout

masked_attention = jaxtyped(backend.masked_attention, typechecker=check)

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


SIZES = {"as shipped": {}, "tiny segments": {"queries": 3, "pairs": 1}, "tiny batches": {"queries": 5, "pairs": 150}}


def assert_exact(tokens: list[Token], heads: tuple[int, int], seed: int, **sizes: int) -> None:
    """Output and gradients."""
    query, key, value, upstream = case(tokens, heads, seed)
    wanted = oracle(query, key, value, tokens)
    found = segment_attention(query, key, value, segment_mask(layout_of(tokens), **sizes), SCALE)
    torch.testing.assert_close(found, wanted, **EXACT)
    gradients = torch.autograd.grad(found, [query, key, value], upstream)
    for gradient, exact in zip(gradients, torch.autograd.grad(wanted, [query, key, value], upstream), strict=True):
        torch.testing.assert_close(gradient, exact, **EXACT)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("seed", range(6))
def test_outputs_and_gradients_are_those_of_sdpa_under_the_dense_mask(
    seed: int, heads: tuple[int, int], sizes: dict[str, int]
) -> None:
    assert_exact(random_groups(seed), heads, seed, **sizes)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("seed", range(12))
def test_tokens_may_stand_at_any_place_in_any_order(seed: int, sizes: dict[str, int]) -> None:
    """Views of uneven length, prompts beside their responses, noise in the prompt: whatever the rule allows."""
    rng = random.Random(seed)
    tokens = [Token(rng.randint(0, 2), rng.randint(0, 3), rng.randint(0, 9), rng.randint(0, 2)) for _ in range(150)]
    assert_exact(tokens, (2, 1), seed, **sizes)


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


def test_a_segment_reads_the_clean_blocks_before_it_and_the_rest_of_itself_and_no_key_twice() -> None:
    """B = 2: a prompt of 2 blocks, two responses whose first block is clean; the views of their blocks 2 and 3."""
    tokens = runs(0, 0, [(0, 0), (1, 0)], 2)
    tokens += runs(0, 1, [(2, 0), (2, 1), (3, 1)], 2) + runs(0, 2, [(2, 0), (2, 1), (2, 2)], 2)
    mask = segment_mask(layout_of(tokens))
    (batch,) = mask.batches
    P = len(tokens)  # padding
    assert batch.queries.tolist() == [[4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15], [0, 1, 2, 3, P, P]]
    assert batch.keys.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, P, P],
        [0, 1, 2, 3, P, P, 10, 11, 12, 13, 14, 15],
        [0, 1, P, P, P, P, 2, 3, P, P, P, P],
    ]
    assert batch.free == 0  # the first block of the prompt sees no clean key before it
    shown = ~batch.hidden[0]
    assert shown[:, :4].all(), "the prompt"
    own, views = [[True] * 2] * 2, [[False] * 2] * 2
    assert shown[:, 4:6].tolist() == [*own, *views, *own], "clean block 2: itself and block 3, not its own noised view"
    assert torch.equal(shown[2:, 6:10], torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1).bool())
    assert not shown[:2, 6:].any() and not shown[:, 10:].any()
    assert not (~batch.hidden[2, :4, 2:6]).any(), "padding"
    assert mask.pairs == 3 * 6 * 12


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_every_token_is_a_query_once_and_runs_are_not_cut(sizes: dict[str, int]) -> None:
    tokens = random_groups(5)
    mask = segment_mask(layout_of(tokens), **sizes)
    segments = [[q for q in row if q < len(tokens)] for batch in mask.batches for row in batch.queries.tolist()]
    assert sorted(q for segment in segments for q in segment) == list(range(len(tokens)))
    owner = {q: i for i, segment in enumerate(segments) for q in segment}
    assert all(owner[a] == owner[b] for a, b in itertools.pairwise(range(len(tokens))) if tokens[a] == tokens[b])


def policy_update(responses: int, tokens: int) -> Layout:
    """A prompt of 148 tokens, responses of so many; B = 4 and two denoising steps a block."""
    first = 148 // 4
    rows = runs(0, 0, [(block, 0) for block in range(first)], 4)
    for branch in range(1, responses + 1):
        blocks = range(first, first + tokens // 4)
        rows += runs(0, branch, [(block, 0) for block in blocks[:-1]], 4)
        rows += runs(0, branch, [(block, view) for block in blocks for view in (1, 2)], 4)
    return layout_of(rows)


@pytest.mark.parametrize(("responses", "tokens", "most"), [(8, 256, 1.4), (2, 1024, 1.15), (1, 2000, 1.1)])
def test_computed_pairs_are_near_the_visible_ones(responses: int, tokens: int, most: float) -> None:
    layout = policy_update(responses, tokens)
    assert segment_mask(layout).pairs <= most * int(dense_mask(layout).sum())


def test_no_tensor_grows_with_the_pairs_in_forward_or_backward() -> None:
    """6,144 tokens: 7 million visible pairs and 38 million in all; no tensor holds more than a batch of scores."""
    layout = policy_update(1, 2000)
    query, key, value = (torch.randn(1, 2, len(layout), 8).requires_grad_() for _ in range(3))
    with Largest() as largest:
        mask = segment_mask(layout, pairs=2**16)
        segment_attention(query, key, value, mask, SCALE).sum().backward()
    most = 64 * (148 + 2000 + 64)  # one segment with all the keys that there are
    assert largest.elements <= 2 * max(2**16, most)
    assert sum(batch.hidden.numel() for batch in mask.batches) < 300 * len(layout)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = [x.numel() for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *found])
        return out


# ------------------------------------------------------------------------------------------------- precision


def test_gradients_in_float64_are_those_of_finite_differences() -> None:
    tokens = random_groups(1)[:40]
    query, key, value = (torch.randn(1, n, 40, 2, dtype=torch.float64).requires_grad_() for n in (2, 1, 1))
    mask = segment_mask(layout_of(tokens), queries=6, pairs=200)
    assert torch.autograd.gradcheck(lambda *x: segment_attention(*x, mask, SCALE), (query, key, value))


def test_half_precision_is_rounded_only_where_it_comes_in_and_goes_out() -> None:
    tokens = random_groups(2)
    inputs = [x.detach().bfloat16() for x in case(tokens, (4, 2), seed=2)[:3]]
    query, key, value = (x.float().requires_grad_() for x in inputs)
    halves = [x.requires_grad_() for x in inputs]
    mask = segment_mask(layout_of(tokens))
    found, wanted = segment_attention(*halves, mask, SCALE), oracle(query, key, value, tokens)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=1e-5)
    gradients = torch.autograd.grad(found.float().sum(), halves)
    for gradient, exact in zip(gradients, torch.autograd.grad(wanted.sum(), [query, key, value]), strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.float(), exact, rtol=2**-6, atol=1e-2)  # the output is rounded too


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


@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_under_autocast_the_layers_get_its_type_whatever_they_give(backend: str) -> None:
    """As transformers does: query and key in fp32 from their norms, value in bf16."""
    tokens = random_groups(4)
    query, key, value, upstream = case(tokens, (4, 2), seed=4)
    mask = build_mask(layout_of(tokens), backend)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = masked_attention(SimpleNamespace(head_dim=8), query, key, value.bfloat16(), mask, scaling=SCALE)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), oracle(query, key, value, tokens), rtol=2e-2, atol=2e-2)
    (gradient,) = torch.autograd.grad(found, [query], upstream.bfloat16())
    assert gradient.dtype == torch.float32
    (wanted,) = torch.autograd.grad(oracle(query, key, value, tokens), [query], upstream)
    torch.testing.assert_close(gradient, wanted, rtol=5e-2, atol=2e-2)


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
