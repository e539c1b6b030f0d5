"""SFT noise: rates, weights, pairs and scopes, and that its expectation is the integral over the noise."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.reference import naive_sft_loss

from dirl.diffusion.noise import NoiseConfig, noise

ALL = np.ones((1, 3), dtype=bool)
LOSSES = np.random.default_rng(7).uniform(0.1, 3, (8, 3))
"""-log p of each position of a toy block of three, for each set of masked positions (bit i: position i is masked)."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def many(config: NoiseConfig, blocks: int = 20_000, size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(masked, weights) of as many equal blocks, [views, blocks, size]."""
    return noise(np.ones((blocks, size), dtype=bool), config, rng())


# ------------------------------------------------------------------------------------- the expectation


def integral(config: NoiseConfig, maskable: np.ndarray) -> float:
    """Eq. 3 of one block by enumeration: over t in [t_min, t_max], and over every set of masked positions.

    Gauss-Legendre with 16 nodes; the integrand is a polynomial in t of degree 2, so this is exact.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(16)
    places = np.flatnonzero(maskable)
    total = 0.0
    for node, node_weight in zip(nodes, node_weights, strict=True):
        t = config.t_min + (config.t_max - config.t_min) * (node + 1) / 2
        for hits in itertools.product([False, True], repeat=len(places)):
            masked = {int(i) for i, hit in zip(places, hits, strict=True) if hit}
            chance = math.prod(t if hit else 1 - t for hit in hits)
            logprobs = torch.from_numpy(-LOSSES[sum(2**i for i in masked)])
            per_token = naive_sft_loss(logprobs, {0: t}, masked, places.tolist(), 3)
            total += node_weight / 2 * chance * float(per_token) * len(places)
    return total


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("scope", ["block", "sequence"])
@pytest.mark.parametrize("maskable", [[True, True, True], [False, True, True], [False, False, True]], ids=str)
@pytest.mark.parametrize("views", [1, 3])
def test_the_expected_loss_of_a_block_is_the_integral_over_its_noise(
    views: int, maskable: list[bool], scope: str
) -> None:
    config = NoiseConfig(views_per_block=views, t_min=0.1, t_max=0.9, noise_scope=scope)
    wanted = integral(config, np.array(maskable))
    mean, error = mean_and_error(sampled_losses(config, np.array(maskable)))
    assert abs(mean - wanted) < 4 * error
    assert error < 0.02 * wanted


def test_complementary_views_estimate_the_same_integral_on_a_symmetric_range() -> None:
    config = NoiseConfig(views_per_block=2, complementary=True, t_min=0.1, t_max=0.9)
    mean, error = mean_and_error(sampled_losses(config, ALL[0]))
    assert abs(mean - integral(config, ALL[0])) < 4 * error


def sampled_losses(config: NoiseConfig, maskable: np.ndarray, draws: int = 20_000) -> np.ndarray:
    """The weighted loss of the toy block, all views together, for each of many draws of the noise."""
    generator = rng(1)
    if config.noise_scope == "sequence":  # one t per call: each draw is a sequence of its own
        both = [noise(maskable[None], config, generator) for _ in range(draws)]
        masked, weights = (np.concatenate(x, axis=1) for x in zip(*both, strict=True))
    else:
        masked, weights = noise(np.broadcast_to(maskable, (draws, 3)), config, generator)
    return (LOSSES[masked @ np.array([1, 2, 4])] * weights).sum((0, 2))


# --------------------------------------------------------------------------------------- rates and weights


def test_only_maskable_positions_are_masked_and_weighted() -> None:
    maskable = rng(3).random((500, 4)) < 0.5
    masked, weights = noise(maskable, NoiseConfig(views_per_block=2), rng())
    assert masked.shape == weights.shape == (2, 500, 4)
    assert not masked[:, ~maskable].any() and masked[:, maskable].any()
    assert np.array_equal(weights > 0, masked)


@pytest.mark.parametrize(("low", "high"), [(0.001, 1.0), (0.3, 0.8), (0.5, 0.5)])
def test_weights_are_one_over_t_and_t_is_uniform_on_its_range(low: float, high: float) -> None:
    """Given a mask, t is not uniform; among blocks of 64 positions nearly each has a mask and so tells its t."""
    masked, weights = many(NoiseConfig(t_min=low, t_max=high), blocks=4000, size=64)
    t = 1 / weights[0].max(-1, where=masked[0], initial=1e-9)[masked[0].any(-1)]
    assert low - 1e-12 <= t.min() and t.max() <= high + 1e-12
    if high > low:
        spread = high - low
        assert abs(t.mean() - (low + high) / 2) < 0.03 * spread
        assert abs(np.quantile(t, 0.25) - (low + spread / 4)) < 0.04 * spread
    assert abs(masked.mean() - (low + high) / 2) < 0.02  # 4 standard deviations of 4000 rates


def test_the_weights_of_all_views_share_one_block() -> None:
    masked, weights = many(NoiseConfig(views_per_block=4, t_min=0.25, t_max=0.25))
    assert np.unique(weights[masked]).tolist() == [1 / (0.25 * 4)]


def test_positions_are_masked_independently_given_t() -> None:
    masked, _ = many(NoiseConfig(t_min=0.5, t_max=0.5), size=3)
    counts = np.bincount(masked[0] @ np.array([1, 2, 4]), minlength=8)
    assert np.abs(counts - 2500).max() < 4 * math.sqrt(2500)


# ---------------------------------------------------------------------------------------- pairs and scopes


def test_what_one_view_of_a_pair_masks_the_other_shows() -> None:
    maskable = rng(5).random((200, 4)) < 0.7
    config = NoiseConfig(views_per_block=4, complementary=True, t_max=0.9)
    masked, weights = noise(maskable, config, rng())
    for view in (0, 1):
        assert np.array_equal(masked[view] ^ masked[view + 2], maskable)
        for block in range(200):
            rates = {1 / (4 * w) for v in (view, view + 2) for w in np.unique(weights[v, block][masked[v, block]])}
            assert len(rates) < 2 or sum(rates) == pytest.approx(1)
    assert not np.array_equal(masked[0], masked[1])


def rates_of(scope: str) -> np.ndarray:
    masked, weights = noise(np.ones((40, 64), dtype=bool), NoiseConfig(2, noise_scope=scope, t_min=0.2), rng(2))
    assert masked.any(-1).all()
    return 1 / (2 * weights.max(-1))


def test_one_rate_per_block_or_one_per_sequence_and_view() -> None:
    per_block, per_sequence = rates_of("block"), rates_of("sequence")
    assert len(np.unique(per_block.round(9))) == 80
    assert [len(np.unique(view.round(9))) for view in per_sequence] == [1, 1]
    assert per_sequence[0, 0] != per_sequence[1, 0]


def test_the_same_generator_state_gives_the_same_noise() -> None:
    one, same, other = (noise(np.ones((50, 4), dtype=bool), NoiseConfig(), rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one[0], same[0]) and np.array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0])


def test_no_blocks_have_no_noise() -> None:
    masked, weights = noise(np.ones((0, 4), dtype=bool), NoiseConfig(), rng())
    assert masked.shape == weights.shape == (1, 0, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseConfig(views_per_block=0), "views_per_block=0: use at least 1"),
        (lambda: NoiseConfig(views_per_block=3, complementary=True, t_max=0.9), "views_per_block=3: .* even number"),
        (lambda: NoiseConfig(noise_scope="token"), "noise_scope='token': use block or sequence"),
        (lambda: NoiseConfig(t_min=0.0), "t_min=0.0.*0 < t_min"),
        (lambda: NoiseConfig(t_min=0.6, t_max=0.5), "t_min=0.6, t_max=0.5"),
        (lambda: NoiseConfig(t_max=1.1), "t_max=1.1"),
        (lambda: NoiseConfig(views_per_block=2, complementary=True), "t_max=1.0: complementary"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make: Callable[[], NoiseConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
