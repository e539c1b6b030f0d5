"""The mask sets that an objective of likelihood bounds drew, for oracles: by block, in order of their numbers."""

from collections.abc import Callable

import torch
from tests.policies import Policies, Policy
from tests.reference import naive_block_elbo
from torch import Tensor

from dirl.rl.steps import Shown

Draws = list[tuple[list[int], list[set[int]]]]
"""Of each block its response's positions, and the set of each draw; of a pair, the first half."""


def draws_of(shown: Shown, block_size: int, mask_token_id: int, views_per_block: int, complementary: bool) -> Draws:
    views, head, found = shown.views, len(shown.trajectory.prompt_ids), []
    for block in range(len(views.blocks)):
        start = (views.first_block + block) * block_size
        maskable = [i for i in range(start, start + block_size) if i >= head]
        sets: list[set[int]] = [set() for _ in range(views_per_block)]  # what is left out masks nothing
        for v in (views.view_block == block).nonzero()[0]:
            hidden = (views.inputs[v] == mask_token_id).nonzero()[0]
            sets[views.view_number[v] - 1] = {start + int(j) for j in hidden}
        if complementary:
            assert all(a | b == set(maskable) and not a & b for a, b in zip(sets[::2], sets[1::2], strict=True))
        found.append((maskable, sets[::2] if complementary else sets))
    return found


def bound_of(this: Policies, policy: Policy, shown: Shown, draws: Draws, complementary: bool) -> Tensor:
    """The estimate of the whole response."""

    def score() -> Callable[[tuple[int, ...]], Tensor]:
        return lambda masked: this.logprobs(policy, shown.trajectory, (masked, masked))

    return torch.stack([naive_block_elbo(score(), maskable, sets, complementary) for maskable, sets in draws]).sum()
