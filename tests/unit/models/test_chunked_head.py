"""The head in chunks: numbers against the slow oracle, gradients against finite differences, and what it holds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.reference import distribution, selection_log_factors
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dirl.diffusion.sampling import scaled_logits
from dirl.models import chunked_head
from dirl.models.head import LOG_FLOOR, selection_factors, target_scores
from dirl.types import DecodingParams

ROWS, VOCABULARY, WIDTH = 7, 11, 5
BANNED, BANNED_IDS = ((3, 4), (6, 8)), {3, 6, 7}
CASES = {
    "plain": DecodingParams(),
    "cold": DecodingParams(temperature=0.6),
    "top-k": DecodingParams(top_k=6),
    "all cuts, hot": DecodingParams(temperature=1.4, top_k=9, top_p=0.9, min_p=0.02),
}
cases = pytest.mark.parametrize("decoding", CASES.values(), ids=CASES.keys())


def made(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 4, 10, 9, 8])
    bound, inclusive = torch.linspace(0.05, 0.3, ROWS, dtype=torch.float64), torch.arange(ROWS) % 2 == 0
    return {
        "weight": weight.to(dtype).requires_grad_(),
        "hidden": hidden.to(dtype).requires_grad_(),
        "targets": targets,
        "bound": bound.to(dtype),
        "inclusive": inclusive,
    }


def scores(of: dict[str, Tensor], decoding: DecodingParams, chunk: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return target_scores(of["weight"], of["hidden"], of["targets"], BANNED, decoding, chunk)


def factors(of: dict[str, Tensor], decoding: DecodingParams, chunk: int | None = None) -> Tensor:
    return selection_factors(of["weight"], of["hidden"], of["bound"], of["inclusive"], BANNED, decoding, chunk)


def oracle(row: Tensor, decoding: DecodingParams) -> tuple[Tensor, Tensor]:
    return distribution(row, BANNED_IDS, decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p)


# ------------------------------------------------------------------------------------------------ the numbers


@cases
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_scores_are_those_of_the_oracle(decoding: DecodingParams, chunk: int | None) -> None:
    of = made()
    logits = (of["hidden"] @ of["weight"].T).detach()
    # The oracle's target would have been drawn: one that is cut is scored as if it had stayed, see test_head.
    for i, row in enumerate(logits):
        drawn, _ = oracle(row, decoding)
        if drawn[of["targets"][i]] == 0:
            of["targets"][i] = drawn.argmax()
    logprobs, entropy, confidence = scores(of, decoding, chunk)
    for i, row in enumerate(logits):
        drawn, full = oracle(row, decoding)
        target = of["targets"][i]
        kept = drawn[drawn > 0]
        wanted = torch.stack([drawn[target].log(), -(kept * kept.log()).sum(), full[target]])
        torch.testing.assert_close(torch.stack([logprobs[i], entropy[i], confidence[i]]).detach(), wanted)


@cases
@pytest.mark.parametrize("committed", [0.1, 0.2, 0.6])
def test_factors_are_those_of_the_oracle(decoding: DecodingParams, committed: float) -> None:
    """One position is committed with a confidence below or above the threshold, the others wait."""
    decoding = dataclasses.replace(decoding, threshold=0.4)
    of = made()
    logits = (of["hidden"] @ of["weight"].T).detach()
    sure = committed >= decoding.threshold
    of["bound"] = torch.full((ROWS,), decoding.threshold if sure else committed, dtype=torch.float64)
    of["inclusive"] = torch.full((ROWS,), not sure)
    found = factors(of, decoding, 2)
    first = torch.tensor([committed, 1 - committed], dtype=torch.float64)
    probs = {i: oracle(row, decoding) for i, row in enumerate(logits)} | {-1: (first, first)}
    wanted = selection_log_factors(decoding, probs, {-1: 0}, range(ROWS))
    wanted = torch.stack([wanted[i] for i in range(ROWS)])
    torch.testing.assert_close(found.detach(), wanted.masked_fill(wanted.isneginf(), LOG_FLOOR))
    assert len(wanted.unique()) > 3


def test_the_logits_are_those_that_the_engine_draws_from() -> None:
    of = made()
    logits = of["hidden"] @ of["weight"].T
    wanted = scaled_logits(logits, BANNED, 0.7)
    torch.testing.assert_close(chunked_head._logits(of["hidden"].detach(), of["weight"].detach(), BANNED, 0.7), wanted)


# ----------------------------------------------------------------------------------------------- the gradient


@cases
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("kind", [lambda *a: scores(*a)[0], factors], ids=["scores", "factors"])
def test_the_gradient_is_that_of_finite_differences(
    kind: Callable[..., Tensor], chunk: int, decoding: DecodingParams
) -> None:
    of = made(1)

    def fn(weight: Tensor, hidden: Tensor) -> Tensor:
        return kind({**of, "weight": weight, "hidden": hidden}, decoding, chunk)

    assert torch.autograd.gradcheck(fn, (of["weight"], of["hidden"]))


@pytest.mark.parametrize("chunk", range(1, ROWS + 2))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_change_neither_numbers_nor_gradients(chunk: int, dtype: torch.dtype) -> None:
    results = []
    for size in (chunk, None):
        of = made(2, dtype)
        found = (*scores(of, CASES["all cuts, hot"], size), factors(of, CASES["cold"], size))
        loss = found[0].sum() + 2 * found[3].sum()
        results.append((*found, *torch.autograd.grad(loss, (of["weight"], of["hidden"]))))
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole)


def test_no_rows_at_all_have_a_gradient_of_zero() -> None:
    of = made()
    none = of | {name: of[name][:0] for name in ("hidden", "targets", "bound", "inclusive")}
    loss = scores(none, DecodingParams())[0].sum() + factors(none, DecodingParams()).sum()
    (gradient,) = torch.autograd.grad(loss, of["weight"])
    assert gradient.shape == of["weight"].shape and not gradient.any()


def test_a_frozen_head_hands_the_gradient_through() -> None:
    of, frozen = made(), made()
    frozen["weight"].requires_grad_(False)
    (wanted,) = torch.autograd.grad(scores(of, DecodingParams())[0].sum(), of["hidden"])
    (found,) = torch.autograd.grad(scores(frozen, DecodingParams())[0].sum(), frozen["hidden"])
    assert torch.equal(found, wanted)


# ------------------------------------------------------------------------------------------------ precision


def test_under_autocast_operands_are_bf16_and_all_else_is_fp32() -> None:
    """The same as in float64 with operands rounded beforehand; logits rounded to bf16 would be far from it."""
    of = made(3, torch.float32)
    rounded = of | {name: of[name].detach().bfloat16().double().requires_grad_() for name in ("weight", "hidden")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropy, _ = scores(of, DecodingParams(), 3)
    wanted, wanted_entropy, _ = scores(rounded, DecodingParams(), 3)
    torch.testing.assert_close(logprobs.double(), wanted, rtol=0, atol=2e-6)
    torch.testing.assert_close(entropy.double(), wanted_entropy, rtol=0, atol=2e-6)
    found = torch.autograd.grad(logprobs.sum(), (of["weight"], of["hidden"]))
    exact = torch.autograd.grad(wanted.sum(), (rounded["weight"], rounded["hidden"]))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-5)


def test_bf16_weights_get_a_bf16_gradient_that_was_summed_in_fp32() -> None:
    """Summed in bf16, the 400 equal contributions would stop to count when the sum is 256 times as large."""
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    rows, targets = torch.ones(800, 1, dtype=torch.bfloat16), torch.zeros(800, dtype=torch.long)
    decoding = DecodingParams()
    weight_of_three = torch.cat([weight, weight.new_zeros(1, 1)])
    logprobs, _, _ = target_scores(weight_of_three, rows, targets, ((2, 3),), decoding, 1)
    assert logprobs.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logprobs.sum(), weight)
    assert gradient.dtype == torch.bfloat16
    assert gradient.flatten().tolist() == [400.0, -400.0]


# --------------------------------------------------------------------------------------------------- memory


class Allocations(TorchDispatchMode):
    """Sizes of all tensors that operations make, and the most bytes of them that live at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, ...]] = []
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, fn: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        out = fn(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            storage = x.untyped_storage() if torch.is_tensor(x) else None
            if storage is not None and storage._cdata not in given:
                self.made.append(tuple(x.shape))
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: value for key, value in self.live.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


@pytest.mark.parametrize("kind", ["scores", "factors"])
def test_no_tensor_is_larger_than_a_chunk_of_logits_and_one_gradient_is_summed(kind: str) -> None:
    """96 rows and 500 tokens: the whole [rows, vocabulary] has 48,000 elements, a chunk of 8 rows 4,000."""
    rows, vocabulary, width, chunk = 96, 500, 6, 8
    torch.manual_seed(0)
    of = {
        "weight": torch.randn(vocabulary, width, requires_grad=True),
        "hidden": torch.randn(rows, width, requires_grad=True),
        "targets": torch.randint(10, vocabulary, (rows,)),
        "bound": torch.full((rows,), 0.002),
        "inclusive": torch.ones(rows, dtype=torch.bool),
    }
    with Allocations() as allocations:
        found = scores(of, DecodingParams(), chunk)[0] if kind == "scores" else factors(of, DecodingParams(), chunk)
        forward = allocations.peak
        found.sum().backward()
    assert max(torch.Size(shape).numel() for shape in allocations.made) == chunk * vocabulary
    assert allocations.made.count((vocabulary, width)) == 1
    logits = chunk * vocabulary * {"scores": 8, "factors": 14}[kind]
    small = 8 * 8 * rows  # the results, of each chunk and joined
    assert forward <= logits + small
    assert allocations.peak <= logits + small + 4 * vocabulary * width + 4 * rows * width


def test_the_chunk_follows_from_the_byte_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_head, "CHUNK_BYTES", 8 * VOCABULARY * 2)
    with Allocations() as allocations:
        scores(made(), DecodingParams())
    assert max(shape[0] for shape in allocations.made if shape[-1:] == (VOCABULARY,)) == 2
