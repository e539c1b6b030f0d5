"""RLOO's advantage (arXiv:2402.14740, section 2.2): what a response is worth beside the others, itself left out."""

import numpy as np

from dirl.advantages.base import OfRewards


class LeaveOneOut(OfRewards):
    """The reward minus the mean of the other rewards of the group: G / (G - 1) times what `Mean` gives."""

    def compare(self, rewards: np.ndarray) -> np.ndarray:
        others = len(rewards) - 1
        return rewards - (rewards.sum() - rewards) / others
