"""Synthetic trajectories: what an engine could have returned, drawn from a seed, for measurements of training."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dirl.types import ModelSpec, Trajectory


@dataclass(frozen=True)
class Load:
    """The responses of one policy update.

    Args:
        block_size: B.
        tokens_per_step: mean number of tokens that a denoising step commits.
        groups: prompts.
        group_size: responses to each prompt.
        prompt_tokens: of every prompt.
        shortest: response tokens are drawn uniformly from shortest..longest, then filled up to whole blocks.
        longest: see shortest.
        steps: `drawn` gives every block its own number of denoising steps, as decoding by a threshold does;
            `equal` commits exactly tokens_per_step tokens at a time, as the static strategies do.
        seed: of everything above.
    """

    block_size: int = 4
    tokens_per_step: int = 2
    groups: int = 1
    group_size: int = 8
    prompt_tokens: int = 150
    shortest: int = 1900
    longest: int = 2100
    steps: Literal["drawn", "equal"] = "drawn"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tokens_per_step <= self.block_size:
            raise ValueError(f"tokens_per_step={self.tokens_per_step}: use 1 to block_size={self.block_size}")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"shortest={self.shortest}: use 1 to longest={self.longest}")


def make_groups(load: Load, spec: ModelSpec) -> list[list[Trajectory]]:
    """Groups with standardised advantages; behaviour log-probs stand near those of a model that knows nothing."""
    rng = np.random.default_rng(load.seed)
    groups = []
    for number in range(load.groups):
        prompt = tuple(rng.integers(0, spec.vocab_size - 2, load.prompt_tokens).tolist())
        advantages = rng.standard_normal(load.group_size)
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-9)
        groups.append([_trajectory(load, spec, rng, prompt, number, i, a) for i, a in enumerate(advantages.tolist())])
    return groups


def _trajectory(
    load: Load,
    spec: ModelSpec,
    rng: np.random.Generator,
    prompt: tuple[int, ...],
    number: int,
    sample: int,
    advantage: float,
) -> Trajectory:
    length = int(rng.integers(load.shortest, load.longest + 1))
    positions = length + -(len(prompt) + length) % spec.block_size
    logprobs = -math.log(spec.vocab_size - 1) + 0.2 * rng.standard_normal(positions)
    return Trajectory(
        prompt_id=str(number),
        sample_index=sample,
        prompt_ids=prompt,
        response_ids=tuple(rng.integers(0, spec.vocab_size - 2, positions).tolist()),
        response_length=length,
        step_map=draw_step_map(load, rng, len(prompt), positions),
        behaviour_logprobs=tuple(logprobs.tolist()),
        finish_reason="length",
        policy_version=0,
        advantage=advantage,
    )


def draw_step_map(load: Load, rng: np.random.Generator, prompt_tokens: int, positions: int) -> tuple[int, ...]:
    """Which denoising step of its block commits each position; every step commits at least one."""
    head = -prompt_tokens % load.block_size or load.block_size
    sizes = [head] + [load.block_size] * ((positions - head) // load.block_size)
    return tuple(step for size in sizes for step in _block_steps(load, rng, size))


def _block_steps(load: Load, rng: np.random.Generator, size: int) -> list[int]:
    tokens = min(load.tokens_per_step, size)
    if load.steps == "equal" or size == 1:
        steps = np.arange(size) // tokens
    else:
        # 1 + Binomial(size - 1, p) steps of mean size / tokens, cut at random places
        more = int(rng.binomial(size - 1, (size / tokens - 1) / (size - 1)))
        cuts = np.zeros(size, dtype=np.int64)
        cuts[1 + rng.permutation(size - 1)[:more]] = 1
        steps = cuts.cumsum()
    return (1 + rng.permutation(steps)).tolist()
