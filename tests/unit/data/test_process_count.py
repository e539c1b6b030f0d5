"""A batch is that of all processes; where it does not divide among them, the message holds for a resumed run too."""

from types import SimpleNamespace

import pytest

from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule


def test_a_batch_of_sft_that_does_not_divide_names_what_may_be_changed() -> None:
    data = SFTDataModule("unused.jsonl", global_batch_size=8, seed=0)
    data.trainer = SimpleNamespace(world_size=3)
    with pytest.raises(ValueError, match=r"use another number of processes or, in a new run, a multiple of 3$"):
        data._steps([], budget=64, shuffle=True)


def test_a_rollout_that_does_not_divide_names_what_may_be_changed() -> None:
    data = RLDataModule("unused.jsonl", prompts_per_rollout=8, steps_per_rollout=2, seed=0)
    with pytest.raises(ValueError, match=r"use another number of processes or, in a new run, a multiple of 6$"):
        data._check_sizes(available=100, world_size=3)


def test_a_rollout_divides_among_processes_and_steps() -> None:
    data = RLDataModule("unused.jsonl", prompts_per_rollout=8, steps_per_rollout=2, seed=0)
    for world_size in (1, 2, 4):
        data._check_sizes(available=8, world_size=world_size)
