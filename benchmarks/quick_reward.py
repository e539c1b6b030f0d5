"""A reward that takes no time, in a module that a worker can import."""

import time

from dirl.rewards import Reward, RewardSample


class Quick(Reward):
    """Costs nothing, or hangs."""

    def __call__(self, sample: RewardSample) -> float:
        if sample.response == "hang":
            time.sleep(3600)
        return float(len(sample.response))
