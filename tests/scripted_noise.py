"""A random generator whose noise is written down, for SFT examples worked by hand."""

import numpy as np


class ScriptedNoise(np.random.Generator):
    """Draws the rates t as given, and masks where the script has a #: there it draws 0, elsewhere just below 1.

    Args:
        rates: t of each view and block, views first.
        masks: one string of marks for each view and block, in the same order.
    """

    def __init__(self, rates: list[float], masks: list[str]) -> None:
        super().__init__(np.random.PCG64(0))
        self.rates, self.masks = rates, masks

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> np.ndarray:  # type: ignore[override]
        assert all(low <= rate <= high for rate in self.rates)
        return np.array(self.rates).reshape(size)

    def random(self, size: tuple[int, ...]) -> np.ndarray:  # type: ignore[override]
        return np.array([[0.0 if mark == "#" else 1 - 1e-9 for mark in row] for row in self.masks]).reshape(size)
