"""A batch is that of all processes; it need not divide among them, as its sums are over all."""

from types import SimpleNamespace

import pytest

from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded
from dirl.types import ModelSpec

SPEC = ModelSpec(4, 9, (8,), 8, 10)


def steps_of(rank: int, world_size: int, examples: list[Encoded]) -> list:
    data = SFTDataModule("unused.jsonl", global_batch_size=4, noise=NoiseConfig(), seed=0)
    module = SimpleNamespace(spec=SPEC, device_mesh=None)
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, lightning_module=module)
    steps = data._steps(examples, budget=64, shuffle=True)
    return [steps[0, step] for step in range(len(steps))]


@pytest.mark.parametrize("world_size", [3, 6])
def test_a_batch_of_sft_is_that_of_one_process_also_where_some_have_none(world_size: int) -> None:
    examples = [Encoded([1, 2, 3, 4, 5, 6][: 2 + i % 5], [False, *[True] * (1 + i % 5)]) for i in range(8)]
    one = steps_of(0, 1, examples)
    ranks = [steps_of(rank, world_size, examples) for rank in range(world_size)]
    for number, step in enumerate(one):
        shares = [rank[number] for rank in ranks]
        assert sum(share.loss_divisor for share in shares) == step.loss_divisor
        assert sum(share.sequences for share in shares) == step.sequences == 4
        assert all(len(share.micro_batches) >= 1 for share in shares), "an empty one, where there is nothing"
        assert (world_size > 4) == any(share.sequences == 0 for share in shares)


def test_a_rollout_needs_as_many_prompts_as_it_asks() -> None:
    data = RLDataModule("unused.jsonl", prompts_per_rollout=8, steps_per_rollout=2, seed=0)
    data._check_size(available=8)
    with pytest.raises(ValueError, match="prompts_per_rollout=8 exceeds the 7 prompts"):
        data._check_size(available=7)
