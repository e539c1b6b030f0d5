"""Cuts, draws and seeded noise: what a candidate is drawn from, and that it is drawn from it."""

import dataclasses
import itertools
import math

import pytest
import torch
from tests.reference import distribution
from torch import Tensor

from dirl.diffusion.sampling import SPAN, candidates, cut_logits, cuts, draw, finite_rows, scaled_logits, uniform
from dirl.types import DecodingParams

MASK, VOCAB = 5, 23
BANNED, BANNED_IDS = ((MASK, MASK + 1), (20, 23)), {MASK, 20, 21, 22}
INF = float("inf")
CUTS = {
    "none": {},
    "top-k 1": {"top_k": 1},
    "top-k": {"top_k": 4},
    "top-k beyond the vocabulary": {"top_k": 100},
    "top-p": {"top_p": 0.7},
    "small top-p": {"top_p": 0.05},
    "min-p": {"min_p": 0.2},
    "all": {"top_k": 8, "top_p": 0.9, "min_p": 0.05},
    "all, tight": {"top_k": 3, "top_p": 0.6, "min_p": 0.5},
}


def f32(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def random_logits(seed: int, rows: int = 50) -> Tensor:
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_the_draw_and_the_confidence_are_those_of_the_oracle(cut: dict, temperature: float) -> None:
    decoding = DecodingParams(temperature=temperature, **cut)
    limits = {"top_k": decoding.top_k, "top_p": decoding.top_p, "min_p": decoding.min_p}
    logits = random_logits(seed=1)
    z = scaled_logits(logits, BANNED, temperature)
    found = cut_logits(z, decoding).softmax(-1).double(), z.softmax(-1).double()
    for row, wanted in enumerate(distribution(each, BANNED_IDS, temperature, **limits) for each in logits):
        for ours, exact in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours[row], exact, atol=1e-6, rtol=1e-5)  # fp32 softmax
            assert torch.equal(ours[row] > 0, exact > 0)


def test_cuts_by_hand() -> None:
    z = f32(0.1, 0.4, 0.2, 0.3).log()[None]

    def kept(**cut: float) -> list[int]:
        return (cut_logits(z, DecodingParams(**cut))[0] > -INF).nonzero().flatten().tolist()

    assert kept(top_k=2) == [1, 3]
    assert kept(top_p=0.6) == [1, 3]  # 0.4 lies before the second, 0.7 before the third
    assert kept(top_p=0.8) == [1, 2, 3]
    assert kept(top_p=0.01) == [1]  # the first token always stays
    assert kept(min_p=0.6) == [1, 3]  # 0.3 / 0.4 passes, 0.2 / 0.4 does not
    assert kept(top_k=3, top_p=0.7) == [1, 3]  # of the three that are left, 0.7 / 0.9 lies before the last
    assert cut_logits(z, DecodingParams()) is z


def test_of_equal_tokens_the_smaller_id_survives_the_cut() -> None:
    assert (cut_logits(torch.zeros(1, 4), DecodingParams(top_k=2)) == f32(0, 0, -INF, -INF)).all()


def test_a_cut_moves_no_token_that_it_keeps() -> None:
    z = scaled_logits(random_logits(seed=2), BANNED, 1.0)
    found = cut_logits(z, DecodingParams(top_k=6, top_p=0.8))
    assert torch.equal(torch.where(found > -INF, found, z), z)


def test_the_mask_token_has_no_probability_at_any_temperature() -> None:
    logits = random_logits(seed=3)
    logits[:, MASK] = 50.0
    for temperature in (0.0, 0.5, 1.0):
        assert (scaled_logits(logits, BANNED, temperature)[:, MASK] == -INF).all()


def test_temperature_zero_counts_as_one_and_has_nothing_to_cut() -> None:
    logits = random_logits(seed=4)
    assert torch.equal(scaled_logits(logits, BANNED, 0.0), scaled_logits(logits, BANNED, 1.0))
    decoding = DecodingParams(top_k=2, top_p=0.5, min_p=0.5)
    assert cuts(decoding) and not cuts(dataclasses.replace(decoding, temperature=0.0)) and not cuts(DecodingParams())


def test_logits_of_low_precision_are_scaled_in_fp32() -> None:
    z = scaled_logits(f32(1.0, 2.0, 3.0).bfloat16(), ((0, 1),), 0.7)
    assert z.dtype == torch.float32
    assert z[2].item() == pytest.approx(3 / 0.7, rel=1e-6)  # bf16 would be off by 1e-3


@pytest.mark.parametrize("count", [1, 3, 7, VOCAB, 100])
def test_the_most_probable_are_those_of_a_stable_sort_ties_too(count: int) -> None:
    z = scaled_logits(random_logits(seed=8, rows=400).round(), BANNED, 1.0)  # a handful of values: ties at every edge
    order = z.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(z, dtype=torch.bool).scatter(-1, order[:, :count], True)
    assert torch.equal(cut_logits(z, DecodingParams(top_k=count)), z.masked_fill(~kept, -INF))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_a_logit_that_is_not_a_number_is_not_cut_away_but_spoils_the_log_prob(cut: dict) -> None:
    z = scaled_logits(random_logits(seed=12, rows=2), BANNED, 1.0)
    z[0, 3] = math.nan
    _, logprobs, confidences = candidates(z, torch.full((2,), 0.5, dtype=torch.float64), DecodingParams(**cut))
    assert logprobs.isnan().tolist() == confidences.isnan().tolist() == [True, False]


def test_scaling_leaves_the_logits_as_they_are() -> None:
    for dtype, temperature in itertools.product((torch.float32, torch.bfloat16), (0.0, 1.0, 0.7)):
        logits = random_logits(seed=9).to(dtype)
        before = logits.clone()
        scaled_logits(logits, BANNED, temperature)
        assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_scaling_has_a_gradient_but_for_the_mask_token(temperature: float) -> None:
    logits, slope = random_logits(seed=9).requires_grad_(), 1 / (temperature or 1)
    scaled_logits(logits, BANNED, temperature)[:, : MASK + 2].sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([slope] * MASK + [0, slope] + [0] * (VOCAB - MASK - 2))


# ------------------------------------------------------------------------------------------------- draws


def drawn(probs: list[float], *u: float) -> list[int]:
    z = torch.tensor(probs, dtype=torch.float64).log().expand(len(u), -1)
    return draw(z, torch.tensor(u, dtype=torch.float64)).tolist()


def test_the_draw_inverts_the_cumulative_distribution_exactly() -> None:
    """Quarters are exact in binary, so the edges lie at exactly 0.25, 0.75 and 1."""
    below, above = math.nextafter(0.25, 0), math.nextafter(0.25, 1)
    assert drawn([0.25, 0.5, 0.25], 0.0, below, 0.25, above) == [0, 0, 1, 1]
    assert drawn([0.25, 0.5, 0.25], math.nextafter(0.75, 0), 0.75, math.nextafter(1, 0)) == [1, 2, 2]


def test_tokens_of_probability_zero_are_never_drawn_not_even_at_the_edges() -> None:
    edges = 0.0, math.nextafter(0.5, 0), 0.5, math.nextafter(1, 0), 1.0
    assert drawn([0, 0.5, 0, 0.5, 0], *edges) == [1, 1, 3, 3, 3]
    assert drawn([0, 1, 0], *edges) == [1] * 5


def test_u_close_to_one_draws_a_token_of_the_cut_and_never_the_mask() -> None:
    """Sums of 23 softmax terms miss 1 by rounding, so the largest u tests the fall-back."""
    z = scaled_logits(random_logits(seed=5, rows=2000), BANNED, 1.0)
    z[:, MASK + 1 :: 2] = -INF
    u = torch.full((len(z),), 1 - 2.0**-53, dtype=torch.float64)
    for each in (u, torch.zeros_like(u), torch.ones_like(u)):
        assert (z.gather(-1, draw(z, each)[:, None]) > -INF).all()


@pytest.mark.parametrize("cut", [{}, {"top_k": 6}, {"top_p": 0.8, "min_p": 0.05}], ids=str)
def test_draws_with_seeded_noise_follow_the_distribution(cut: dict) -> None:
    """Chi-square of 40,000 draws, each of another request; 1 in 10,000 right samplers would fail, on other seeds."""
    decoding, count = DecodingParams(**cut), 40_000
    z = cut_logits(scaled_logits(random_logits(seed=6, rows=1), BANNED, 1.0), decoding)
    u = uniform(torch.arange(count), torch.tensor(17), torch.tensor(2))
    observed = torch.bincount(draw(z.expand(count, -1), u), minlength=VOCAB).double()
    expected = count * z[0].double().softmax(-1)
    assert not observed[expected == 0].any()
    possible = expected > 0
    chi2 = float(((observed - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson-Hilferty, 1e-4
    assert chi2 < bound


@pytest.mark.parametrize("vocab", [SPAN - 1, SPAN, SPAN + 1, 3 * SPAN + 7])
@pytest.mark.parametrize("deviation", [0.05, 3.0], ids=["flat", "peaked"])
def test_the_draw_in_spans_is_one_over_the_whole_vocabulary(vocab: int, deviation: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    z = deviation * torch.randn(2000, vocab, generator=generator)
    u = torch.rand(2000, generator=generator, dtype=torch.float64)
    reached = z.softmax(-1).double().cumsum(-1)
    assert torch.equal(draw(z, u), torch.searchsorted(reached, (u * reached[:, -1])[:, None], right=True).squeeze(-1))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("confidence", ["sampled", "max"])
def test_a_candidate_has_the_log_prob_of_its_draw_and_its_confidence(
    cut: dict, temperature: float, confidence: str
) -> None:
    decoding = DecodingParams(temperature=temperature, confidence=confidence, **cut)
    z = scaled_logits(random_logits(seed=10), BANNED, temperature)
    u = torch.rand(len(z), generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    tokens, logprobs, confidences = candidates(z, u, decoding)
    kept = cut_logits(z, decoding)
    assert torch.equal(tokens, draw(kept, u) if temperature else z.argmax(-1))
    full = z.double().softmax(-1)
    wanted = full.amax(-1) if confidence == "max" else full.gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(confidences.double(), wanted, rtol=1e-5, atol=0)
    drawn_from = kept.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), drawn_from, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------ seeded noise


def grid() -> tuple[Tensor, Tensor, Tensor]:
    """Seeds as they come from hashes and small ones, positions, forwards: all combinations."""
    seeds = torch.cat([torch.arange(20), torch.tensor([2**62 + 12345, 2**63 - 1, 987654321012345678])])
    return seeds[:, None, None], torch.arange(64)[None, :, None], torch.arange(32)[None, None, :]


def test_every_seed_position_and_forward_has_a_number_of_its_own_in_the_unit_interval() -> None:
    u = uniform(*grid())
    assert u.shape == (23, 64, 32) and u.dtype == torch.float64
    assert u.min() >= 0 and u.max() < 1
    assert u.unique().numel() == u.numel()


def test_the_noise_is_uniform_in_each_direction() -> None:
    """Means and squares of 47,104 numbers within 4 standard deviations, and no correlation with a neighbour."""
    u = uniform(*grid()) - 0.5
    n = u.numel()
    assert abs(u.mean()) < 4 * math.sqrt(1 / 12 / n)
    assert abs((u**2).mean() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    for direction in range(3):
        ahead, behind = u.narrow(direction, 1, u.shape[direction] - 1), u.narrow(direction, 0, u.shape[direction] - 1)
        assert abs((ahead * behind).mean()) < 4 / 12 / math.sqrt(ahead.numel())
    counts = torch.histc(u.float(), bins=64, min=-0.5, max=0.5).double()
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 4 * math.sqrt(2 * 63)


def test_the_numbers_of_a_request_do_not_depend_on_what_else_is_in_the_batch() -> None:
    seeds, positions, forwards = torch.arange(9), torch.arange(100, 109), torch.arange(9) % 3
    together = uniform(seeds, positions, forwards)
    alone = [uniform(*(x[i : i + 1] for x in (seeds, positions, forwards))).item() for i in range(9)]
    assert together.tolist() == alone
    assert uniform(seeds.flip(0), positions.flip(0), forwards.flip(0)).tolist() == alone[::-1]


def test_the_three_arguments_are_no_substitutes_for_one_another() -> None:
    a, b = torch.tensor(3), torch.tensor(7)
    swapped = [uniform(*args).item() for args in ((a, b, b), (b, a, b), (b, b, a))]
    assert len(set(swapped)) == 3


def test_the_noise_is_splitmix64_in_python_integers() -> None:
    """So that another engine, or another machine, can draw the same tokens."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    def by_hand(seed: int, position: int, forward: int) -> float:
        golden = 0x9E3779B97F4A7C15
        x = mix((seed + golden) % 2**64)
        x = mix(x ^ (position * 0xD1B54A32D192ED03 + golden) % 2**64)
        x = mix(x ^ (forward * 0x8CB92BA72F3D8DD7 + golden) % 2**64)
        return (x >> 11) / 2**53

    seeds, positions, forwards = grid()
    found = uniform(seeds, positions, forwards)
    for s, p, f in ((0, 0, 0), (5, 63, 1), (20, 3, 31), (21, 7, 9), (22, 62, 30)):
        assert found[s, p, f].item() == by_hand(int(seeds[s]), p, f)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_with_one_logit_that_is_not_finite_is_told_from_large_ones(dtype: torch.dtype) -> None:
    logits = torch.full((6, 5000), 40.0, dtype=dtype)  # their sum is beyond float16
    logits[1, 4321], logits[2, 0], logits[3, 77] = INF, -INF, math.nan
    logits[4, :2] = torch.tensor([INF, -INF])
    assert finite_rows(logits).tolist() == [True, False, False, False, False, True]
