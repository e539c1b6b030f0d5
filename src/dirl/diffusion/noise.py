"""Noising for SFT: which response tokens of each block a noised view masks, and their loss weights.

Block diffusion's training bound (DiRL, eq. 3): t ~ U(low, high) per block, each response token masked with
probability t, weight 1/t on the masked ones. Of a block of one token that is, over all t, -log p of it: it is masked
once, with weight 1, and nothing is left to chance.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class NoiseConfig:
    """How SFT noises a block. One of a single token is masked as it is, whatever is said here.

    Args:
        views_per_block: noised views of each block that share one clean copy; the loss is their mean.
        complementary: views come in pairs, what one masks the other shows; needs an even number of views.
        noise_scope: `block` draws t for every block, `sequence` once per sequence and view.
        t_min: lower end of the range of t; above 0, so that 1/t is bounded.
        t_max: upper end of the range of t.
    """

    views_per_block: int = 1
    complementary: bool = False
    noise_scope: Literal["block", "sequence"] = "block"
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if self.views_per_block < 1:
            raise ValueError(f"noise.views_per_block={self.views_per_block}: use at least 1")
        if self.complementary and self.views_per_block % 2:
            raise ValueError(f"noise.views_per_block={self.views_per_block}: complementary views need an even number")
        if self.noise_scope not in ("block", "sequence"):
            raise ValueError(f"noise.noise_scope={self.noise_scope!r}: use block or sequence")
        if not 0 < self.t_min <= self.t_max <= 1:
            raise ValueError(f"noise.t_min={self.t_min}, t_max={self.t_max}: need 0 < t_min <= t_max <= 1")
        if self.complementary and self.t_max >= 1:
            raise ValueError(
                f"noise.t_max={self.t_max}: complementary views mask with 1 - t as well; use t_max = 1 - t_min"
            )


def noise(
    maskable: Bool[np.ndarray, "K B"], config: NoiseConfig, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "views K B"], Float[np.ndarray, "views K B"]]:
    """Draw the views of K blocks.

    Args:
        maskable: response tokens.

    Returns:
        masked and weights (1 / (t * views) where masked, 0 elsewhere), so
        that the weighted sum of -log p over all views estimates the bound of eq. 3.
        Blocks of one token have one view, and the sum is -log p itself.
    """
    if maskable.shape[1] == 1:
        return maskable[None], maskable[None].astype(np.float64)
    views = config.views_per_block
    independent = views // 2 if config.complementary else views
    rates = 1 if config.noise_scope == "sequence" else len(maskable)
    t = rng.uniform(config.t_min, config.t_max, (independent, rates, 1))
    hit = rng.random((independent, *maskable.shape)) < t
    t = np.broadcast_to(t, hit.shape)
    if config.complementary:
        hit, t = np.concatenate([hit, ~hit]), np.concatenate([t, 1 - t])
    masked = hit & maskable
    return masked, np.where(masked, 1 / (t * views), 0.0)
