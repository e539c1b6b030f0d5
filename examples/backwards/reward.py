"""A reward of one's own: is the response the word, backwards?"""

from dirl.rewards import Reward, RewardSample


class Backwards(Reward):
    in_process = True  # it is quick, and cannot hang
    judges = True  # above 0 is correct

    def __call__(self, sample: RewardSample) -> float:
        return float(sample.response.strip() == sample.ground_truth)
