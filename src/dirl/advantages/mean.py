"""Dr. GRPO's advantage (arXiv:2503.20783, section 3.2): groups of little spread do not weigh as much as others."""

import numpy as np

from dirl.advantages.base import OfRewards


class Mean(OfRewards):
    """The reward minus the group's mean."""

    def compare(self, rewards: np.ndarray) -> np.ndarray:
        return rewards - rewards.mean()
