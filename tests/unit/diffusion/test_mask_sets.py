"""Mask sets of likelihood bounds: their estimate is unbiased, by enumeration of all sizes and orders of a toy block."""

import itertools
import math

import numpy as np
import pytest

from dirl.diffusion.mask_sets import mask_sets


class Script(np.random.Generator):
    """Draws what it is given, one array a call."""

    def __init__(self, *draws: np.ndarray) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = list(draws)

    def random(self, size: tuple[int, ...]) -> np.ndarray:  # type: ignore[override]
        return self.draws.pop(0).reshape(size)


def log_p(masked: frozenset[int], i: int) -> float:
    """Of position i where `masked` is masked: any numbers will do."""
    return -math.log(2 + sum(1 + j for j in masked) * (1 + i) % 7)


def bound(tokens: int) -> float:
    """The mean over orders of the sum of log p of each token given those before it."""
    orders = list(itertools.permutations(range(tokens)))
    return sum(log_p(frozenset(o[t:]), o[t]) for o in orders for t in range(tokens)) / len(orders)


def estimates(masked: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[K]."""
    sets = [[frozenset(np.flatnonzero(view).tolist()) for view in block] for block in masked]
    return np.array(
        [
            sum(weights[k, v, i] * log_p(one, i) for v, one in enumerate(block) for i in one)
            for k, block in enumerate(sets)
        ]
    )


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("complementary", [True, False])
def test_the_estimate_of_one_draw_is_unbiased(complementary: bool, tokens: int) -> None:
    """One block for each size and order of a draw, all equally probable; a fourth position is the prompt's."""
    sizes = tokens + complementary
    cases = [(s, o) for s in range(sizes) for o in itertools.permutations(range(tokens))]
    start = np.array([(s + 0.5) / sizes for s, _ in cases])
    order = np.array([[0.0, *((1 + r) / 10 for r in o)] for _, o in cases])
    maskable = np.array([[False] + [True] * tokens] * len(cases))
    masked, weights = mask_sets(maskable, 1 + complementary, complementary, Script(start, order))
    assert not masked[:, :, 0].any()
    assert estimates(masked[:, :, 1:], weights[:, :, 1:]).mean() == pytest.approx(bound(tokens), rel=1e-12)


def test_each_draw_of_several_has_every_size_as_often() -> None:
    rng, maskable = np.random.default_rng(0), np.array([[False, True, True, True]] * 6000)
    masked, weights = mask_sets(maskable, 3, False, rng)
    sizes = masked.sum(-1)
    assert set(map(tuple, np.sort(sizes, axis=1).tolist())) == {(1, 2, 3)}  # stratified: three draws, three sizes
    for draw in range(3):
        assert np.bincount(sizes[:, draw], minlength=4)[1:] / 6000 == pytest.approx([1 / 3] * 3, abs=0.02)
    assert np.allclose(weights[masked], (3 / sizes[..., None] / 3 * masked)[masked])


def test_pairs_share_out_the_tokens() -> None:
    maskable = np.array([[False, True, True, True], [True] * 4])
    masked, _ = mask_sets(maskable, 4, True, np.random.default_rng(1))
    assert (masked[:, ::2] ^ masked[:, 1::2] == maskable[:, None]).all()


def test_pairs_have_less_variance_where_few_visible_tokens_tell_little() -> None:
    """Of log p that falls with the number of masks, one half is above the bound where the other is below."""
    maskable = np.ones((20000, 4), dtype=bool)
    found = []
    for complementary in (True, False):
        masked, weights = mask_sets(maskable, 2, complementary, np.random.default_rng(2))
        found.append((weights * masked * -masked.sum(-1, keepdims=True)).sum((1, 2)))
    of_pairs, alone = found
    assert of_pairs.mean() == pytest.approx(-10, abs=0.1) and alone.mean() == pytest.approx(-10, abs=0.1)
    assert of_pairs.var() < alone.var()
