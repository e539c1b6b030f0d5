"""Random mask sets whose scores estimate a lower bound on a block's log-likelihood (ELBO), by their size.

The bound of a block of m tokens is the mean over all orders of the sum of log p of each token given those before it. A
set S of n of them, drawn evenly, has n tokens that may be the next to come, so m / n sum_{i in S} log p(y_i | the rest
of the block) with n even in 1..m has the bound as its expectation (arXiv:2512.03759; LLaDA, arXiv:2502.09992, eq. 6).
Sizes of one block's draws are stratified: the first is even, the others are spread evenly from it.
"""

import numpy as np

from dirl.diffusion.views import Views, in_blocks, masked_views
from dirl.types import ModelSpec, Trajectory


def bound_views(
    trajectory: Trajectory, spec: ModelSpec, rng: np.random.Generator, views_per_block: int, complementary: bool
) -> Views:
    """Views with weights, by which the sum of their scores is an estimate of the response's bound; see `mask_sets`."""
    _, _, index = in_blocks(trajectory, spec.block_size)
    masked, weights = mask_sets(index >= 0, views_per_block, complementary, rng)
    return masked_views(trajectory, spec.block_size, spec.mask_token_id, masked, weights)


def mask_sets(
    maskable: np.ndarray, views: int, complementary: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which positions are masked, and what their scores weigh: both [K, views, B].

    Args:
        maskable: [K, B] response tokens, some in each block.
        complementary: views 1 and 2, 3 and 4 ... are a set and its complement. The size of the set is even in 0..m, the
            weights are (m + 1) / n each: either half is unbiased, an empty one counts 0. Errors cancel where log p
            falls with the masks in sight; where it hardly does, in short blocks, sets without complements vary less.
    """
    tokens = maskable.sum(1)[:, None]
    draws = views // 2 if complementary else views
    start = (rng.random((len(maskable), 1)) + np.arange(draws) / draws) % 1
    sizes = np.floor(start * (tokens + 1)) if complementary else 1 + np.floor(start * tokens)
    order = np.where(maskable[:, None], rng.random((len(maskable), draws, maskable.shape[1])), np.inf)
    masked = order.argsort(-1).argsort(-1) < sizes[..., None]
    if complementary:
        pairs = np.stack([masked, maskable[:, None] & ~masked], axis=2)
        masked = pairs.reshape(len(maskable), views, -1)
    counts = np.maximum(masked.sum(-1), 1)
    weights = (tokens + complementary) / (counts * views)
    return masked, np.where(masked, weights[..., None], 0.0)
