"""What only a CUDA device can show: compiled FlexAttention with its backward, the engine and the trainer on one GPU."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tests.packed import group_pieces
from tests.tiny import flat_gradient

from dirl.attention import build_mask
from dirl.attention.backend import masked_attention
from dirl.batches import Layout, PackedBatch
from dirl.models import BlockDiffusionLM, NewModel
from dirl.packing.rows import pack
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, Trajectory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SOURCE = NewModel(hidden_size=128, num_hidden_layers=2, head_dim=32, initializer_range=0.15, alphabet="0123456789+=")
PARAMS = DecodingParams(threshold=0.5, max_response_tokens=61)


def sample(device: str, dtype: str = "float32") -> list[list[Trajectory]]:
    description = SOURCE.describe()
    engine = TorchEngine(max_batch_size=16, dtype=dtype)
    engine.setup(description.config, description.tokenizer, description.spec, device)
    engine.update_weights(SOURCE.build(description.config).named_parameters(), 0)
    prompts = {n: tuple(range(n % 7, n % 7 + n)) for n in (3, 8)}
    requests = [GenerationRequest(str(n), i, ids, seed=100 * n + i) for n, ids in prompts.items() for i in range(8)]
    found = {t.key: t for t in engine.generate(requests, PARAMS)}
    return [[dataclasses.replace(found[str(n), i], advantage=1.0) for i in range(8)] for n in prompts]


def packed(groups: list[list[Trajectory]]) -> PackedBatch:
    spec = SOURCE.describe().spec
    segments = [s for group in groups for s in group_pieces(group, spec, [1.0] * len(group), True)]
    (batch,) = pack(segments, 10**6)
    return batch.to("cuda")


def model(attention: str) -> BlockDiffusionLM:
    description = SOURCE.describe()
    return BlockDiffusionLM(SOURCE.build(description.config), description.spec, attention).cuda()


@pytest.fixture(scope="module")
def groups() -> list[list[Trajectory]]:
    return sample("cuda")


@pytest.mark.parametrize("rows", [[0], [1], [0, 1]])  # another length each: one dynamic kernel serves them
def test_flex_equals_sdpa_forward_and_backward(groups: list[list[Trajectory]], rows: list[int]) -> None:
    assert_flex_is_dense(packed([groups[i] for i in rows]).layout, width=32)


@pytest.mark.parametrize("width", [8, 128])  # heads of toy models, which the kernels refuse, and of SDAR
@pytest.mark.parametrize("tokens", [4, 100, 128, 300])
def test_rows_of_less_than_a_tile_and_heads_of_any_width(tokens: int, width: int) -> None:
    blocks = torch.arange(tokens, device="cuda") // 4
    noised = (blocks >= tokens // 8).long()  # the second half is a view of other blocks than the first half holds
    assert_flex_is_dense(Layout(0 * blocks, 0 * blocks, blocks, noised), width)


def assert_flex_is_dense(layout: Layout, width: int) -> None:
    """Outputs and gradients of flex and segments are those of SDPA under the dense mask."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, len(layout), width, device="cuda", requires_grad=True) for heads in (4, 2, 2))
    weight = torch.randn(1, len(layout), 4, width, device="cuda")
    outputs = {}
    for backend in ("flex", "segments", "dense"):
        mask = build_mask(layout, backend)
        out, _ = masked_attention(torch.nn.Module(), q, k, v, mask, scaling=width**-0.5)
        outputs[backend] = (out, *torch.autograd.grad((out * weight).sum(), (q, k, v)))
    for backend in ("flex", "segments"):
        for ours, wanted in zip(outputs[backend], outputs["dense"], strict=True):
            # TF32 in the Triton kernel, where it is allowed: ten bits of mantissa
            torch.testing.assert_close(ours, wanted, rtol=2e-2, atol=2e-2)
            assert F.cosine_similarity(ours.flatten(), wanted.flatten(), dim=0) > 0.9999


def test_the_trainer_scores_what_the_engine_sampled(groups: list[list[Trajectory]]) -> None:
    batch = packed(groups)
    with torch.no_grad():
        scores = model("flex")(batch, PARAMS)
    mismatch = (scores.logprobs - batch.columns["behaviour_logprobs"][scores.positions]).abs()
    assert mismatch.mean() < 1e-3
    assert mismatch.max() < 5e-2


def test_the_gradient_through_flex_is_that_of_the_dense_mask(groups: list[list[Trajectory]]) -> None:
    batch = packed(groups)
    gradients = {}
    for attention in ("flex", "dense"):
        lm = model(attention)
        gradients[attention] = flat_gradient(-lm(batch, PARAMS).logprobs.mean(), lm.parameters())
    assert F.cosine_similarity(gradients["flex"], gradients["dense"], dim=0) > 0.9999


def test_bf16_log_probs_of_the_engine_stay_near_the_trainers() -> None:
    batch = packed(sample("cuda", "bfloat16"))
    with torch.no_grad():
        scores = model("flex")(batch, PARAMS)
    mismatch = (scores.logprobs - batch.columns["behaviour_logprobs"][scores.positions]).abs()
    assert mismatch.mean() < 0.05


def test_cuda_and_cpu_sample_the_same_tokens_from_the_same_seeds(groups: list[list[Trajectory]]) -> None:
    """Rounding may flip a draw that lies within 1e-6 of an edge; most responses must be equal to the token."""
    cpu = sample("cpu")
    same = [
        a.response_ids == b.response_ids for x, y in zip(groups, cpu, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert sum(same) >= 0.8 * len(same)
