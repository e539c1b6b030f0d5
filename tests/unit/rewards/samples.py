"""Samples for the tests of rewards."""

from dirl.rewards import RewardSample


def sample(
    response: str = r"\boxed{4}",
    ground_truth: str = "4",
    *,
    prompt_id: str = "p",
    index: int = 0,
    question: str = "2 + 2?",
    length: int = 25,
    limit: int = 100,
    steps: int = 10,
    block_size: int = 4,
) -> RewardSample:
    return RewardSample(prompt_id, index, question, response, ground_truth, length, steps, limit, block_size)


RIGHT, WRONG = r"so \boxed{4}", r"so \boxed{5}"
