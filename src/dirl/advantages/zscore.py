"""GRPO's advantage (DeepSeekMath, arXiv:2402.03300, section 4.1), DiRL's too."""

import numpy as np

from dirl.advantages.base import OfRewards


class ZScore(OfRewards):
    """The reward minus the group's mean, over the group's population standard deviation."""

    def compare(self, rewards: np.ndarray) -> np.ndarray:
        return (rewards - rewards.mean()) / rewards.std()
