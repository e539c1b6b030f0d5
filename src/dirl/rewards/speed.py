"""Rewards for decoding in few denoising steps.

Speed is s = clamp(L / steps - 1, 0, B - 1), the tokens per denoising step beyond the first; B tokens a step is the
most that a block allows. It acts through h = (1 - cos(pi s / (B - 1))) / 2, from 0 to 1. Blocks of one token
have no speed: h = 0.
"""

from dirl.rewards.accuracy import MathReward
from dirl.rewards.base import RewardSample
from dirl.rewards.length import half_cosine


class Speed(MathReward):
    """Correct: from 0.5 up to 1.0 with speed. Wrong, or cut (L >= M): from 0 down to -0.5."""

    def value(self, sample: RewardSample, correct: bool) -> float:
        gain = 0.5 * speed_progress(sample)
        return 0.5 + gain if correct else -gain


class SpeedPenalty(MathReward):
    """Correct: 0.5 at any speed. Wrong, or cut (L >= M): from 0 down to -0.5 with speed, as `Speed`."""

    def value(self, sample: RewardSample, correct: bool) -> float:
        return 0.5 if correct else -0.5 * speed_progress(sample)


def speed_progress(sample: RewardSample) -> float:
    """h of this response, 0 for one token a denoising step, 1 for B."""
    if sample.denoising_steps < 1:
        raise ValueError(f"denoising_steps={sample.denoising_steps}; a response takes at least one")
    top = sample.block_size - 1
    if top < 1:
        return 0.0
    speed = sample.response_length / sample.denoising_steps - 1.0
    return half_cosine(min(max(speed, 0.0), top) / top)
