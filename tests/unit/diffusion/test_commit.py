"""Which positions a step commits: the three strategies by hand, and against the oracle."""

import dataclasses
import random

import pytest
import torch
from tests import reference
from torch import Tensor

from dirl.diffusion.commit import commit
from dirl.types import DecodingParams

DYNAMIC = DecodingParams(strategy="low_confidence_dynamic", threshold=0.8)
STATIC = DecodingParams(strategy="low_confidence_static", denoising_steps=2)
SEQUENTIAL = DecodingParams(strategy="sequential", denoising_steps=2)


def chosen(decoding: DecodingParams, confidence: list[float], masked: str) -> str:
    """Committed positions as marks; `masked` has # where a position is masked."""
    rows = torch.tensor([[mark == "#" for mark in masked]])
    found = commit(torch.tensor([confidence]), rows, decoding, len(masked))
    return "".join("#" if mark else "." for mark in found[0])


def test_dynamic_commits_the_best_and_all_at_or_above_the_threshold() -> None:
    assert chosen(DYNAMIC, [0.1, 0.5, 0.3, 0.2], "####") == ".#.."
    assert chosen(DYNAMIC, [0.9, 0.5, 0.8, 0.2], "####") == "#.#."
    assert chosen(DYNAMIC, [0.9, 0.9, 0.85, 0.99], "####") == "####"


def test_a_threshold_of_one_commits_one_position_unless_others_are_certain() -> None:
    never = dataclasses.replace(DYNAMIC, threshold=1.0)
    assert chosen(never, [0.9, 0.99, 0.95, 0.9], "####") == ".#.."
    assert chosen(never, [1.0, 0.99, 1.0, 0.9], "####") == "#.#."


def test_static_commits_the_best_of_its_quota() -> None:
    assert chosen(STATIC, [0.1, 0.5, 0.3, 0.2], "####") == ".##."
    assert chosen(dataclasses.replace(STATIC, denoising_steps=None), [0.1, 0.5, 0.3, 0.2], "####") == ".#.."


def test_sequential_commits_from_the_left_whatever_the_confidence() -> None:
    assert chosen(SEQUENTIAL, [0.1, 0.5, 0.3, 0.9], "####") == "##.."
    assert chosen(SEQUENTIAL, [0.1, 0.5, 0.3, 0.9], ".#.#") == ".#.#"


@pytest.mark.parametrize("decoding", [DYNAMIC, STATIC, SEQUENTIAL], ids=lambda p: p.strategy)
def test_what_is_not_masked_is_never_committed(decoding: DecodingParams) -> None:
    assert chosen(decoding, [0.99, 0.2, 0.99, 0.99], ".#..") == ".#.."
    assert chosen(decoding, [0.99, 0.99, 0.99, 0.99], "....") == "...."


def test_of_equals_the_leftmost_goes_first() -> None:
    assert chosen(DYNAMIC, [0.3, 0.3, 0.3, 0.3], ".###") == ".#.."
    assert chosen(STATIC, [0.3, 0.3, 0.3, 0.3], ".###") == ".##."


def test_a_confidence_of_zero_is_still_better_than_nothing() -> None:
    """In fp32 the confidence of an unlikely draw can be exactly 0; the step must commit it all the same."""
    assert chosen(DYNAMIC, [0.0, 0.0, 0.0, 0.0], "..##") == "..#."


@pytest.mark.parametrize("strategy", ["low_confidence_dynamic", "low_confidence_static", "sequential"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_random_blocks_are_committed_as_the_oracle_does(size: int, strategy: str) -> None:
    rng = random.Random(size)
    for _ in range(150):
        threshold, steps = rng.choice([0.3, 0.5, 0.9, 1.0]), rng.choice([None, 1, 2, 3, 8, 20])
        decoding = DecodingParams(strategy=strategy, threshold=threshold, denoising_steps=steps)
        confidence, masked = random_rows(rng, size)
        found = commit(confidence, masked, decoding, size)
        for row in range(len(masked)):
            places = masked[row].nonzero().flatten().tolist()
            values = dict(enumerate(confidence[row].tolist()))
            quota = decoding.quota(size)
            wanted = reference.commit(strategy, values, places, threshold, quota) if places else set()
            assert set(found[row].nonzero().flatten().tolist()) == wanted


def random_rows(rng: random.Random, size: int) -> tuple[Tensor, Tensor]:
    """Confidences in eighths, so that equals are common and exact, and masks."""
    confidence = [[rng.randint(0, 8) / 8 for _ in range(size)] for _ in range(4)]
    return torch.tensor(confidence), torch.tensor([[rng.random() < 0.6 for _ in range(size)] for _ in range(4)])


def test_every_block_is_finished_after_as_many_steps_as_the_quota_says() -> None:
    for steps, size, wanted in ((None, 8, 8), (2, 8, 2), (3, 8, 4), (8, 4, 4), (1, 4, 1)):
        decoding = DecodingParams(strategy="sequential", denoising_steps=steps)
        masked = torch.ones(1, size, dtype=torch.bool)
        count = 0
        while masked.any():
            masked = masked & ~commit(torch.zeros(1, size), masked, decoding, size)
            count += 1
        assert count == wanted, (steps, size)  # 8 // 3 is 2 a step, hence 4 steps
