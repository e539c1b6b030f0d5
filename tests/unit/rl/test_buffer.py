"""The buffer: its fixed length and its state; groups cut into steps; weights and divisors of a step by hand."""

from pathlib import Path

import pytest
import torch

from dirl.batches import IGNORE, StepBatch
from dirl.objectives import DiPO
from dirl.rl.buffer import RolloutBuffer
from dirl.rl.steps import cut_steps, step_batch
from dirl.types import ModelSpec, Trajectory

SPEC = ModelSpec(block_size=2, mask_token_id=50, stop_token_ids=(60,), pad_token_id=60, vocab_size=64)


def trajectory(number: int, length: int) -> Trajectory:
    return Trajectory(
        prompt_id="p",
        sample_index=number,
        prompt_ids=(1, 2),
        response_ids=tuple(range(10, 10 + length)),
        response_length=1,
        step_map=(1,) * length,
        behaviour_logprobs=(-float(number),) * length,
        finish_reason="stop",
        policy_version=0,
        advantage=float(number),
    )


GROUPS = [[trajectory(1, 2), trajectory(2, 4)], [trajectory(3, 6), trajectory(4, 2)]]


def step(normalization: str = "token", budget: int = 100) -> StepBatch:
    return step_batch(GROUPS, SPEC, DiPO(normalization=normalization), max_response_tokens=9, token_budget=budget)


def weights_by_trajectory(step: StepBatch) -> dict[int, list[float]]:
    """Loss weights of the scored tokens of each trajectory, by its advantage."""
    found: dict[int, list[float]] = {}
    for batch in step.micro_batches:
        scored = batch.target_ids != IGNORE
        assert not batch.loss_weights[~scored].any()
        numbers = batch.columns["advantages"][scored].tolist()
        for number, weight in zip(numbers, batch.loss_weights[scored].tolist(), strict=True):
            found.setdefault(int(number), []).append(weight)
    return found


# ------------------------------------------------------------------------------------- weights and divisors


@pytest.mark.parametrize("budget", [1, 20, 100])
def test_token_divides_by_all_scored_tokens_of_the_step(budget: int) -> None:
    """The tail after the stop token is scored too: 2 + 4 + 6 + 2 tokens."""
    made = step("token", budget)
    assert (made.loss_divisor, made.sequences) == (14.0, 4)
    assert weights_by_trajectory(made) == {1: [1.0] * 2, 2: [1.0] * 4, 3: [1.0] * 6, 4: [1.0] * 2}


@pytest.mark.parametrize("budget", [1, 20, 100])
def test_sequence_means_over_each_trajectory_then_over_trajectories(budget: int) -> None:
    made = step("sequence", budget)
    assert (made.loss_divisor, made.sequences) == (4.0, 4)
    for number, length in ((1, 2), (2, 4), (3, 6), (4, 2)):
        assert weights_by_trajectory(made)[number] == pytest.approx([1 / length] * length)


def test_constant_divides_by_trajectories_times_the_length_limit() -> None:
    made = step("constant")
    assert (made.loss_divisor, made.sequences) == (36.0, 4)
    assert {w for weights in weights_by_trajectory(made).values() for w in weights} == {1.0}


def test_micro_batches_keep_to_the_budget() -> None:
    assert [len(b) for b in step(budget=20).micro_batches] == [14, 10]  # 2 + 10 + 2 and 2 + 2 + 6 tokens, by size
    assert len(step(budget=100).micro_batches) == 1


def test_prompts_are_shared_unless_told_otherwise() -> None:
    own = step_batch(GROUPS, SPEC, DiPO(), 9, 100, share_prompt=False)
    assert sum(len(b) for b in own.micro_batches) - sum(len(b) for b in step().micro_batches) == 4
    assert weights_by_trajectory(own) == weights_by_trajectory(step())


def test_a_step_without_groups_has_nothing_to_divide_by() -> None:
    empty = step_batch([], SPEC, DiPO(), 9, 100)
    assert (empty.micro_batches, empty.loss_divisor, empty.sequences) == ([], 0.0, 0)


# ----------------------------------------------------------------------------------------------- cutting


def test_groups_are_cut_in_order_into_runs_of_nearly_equal_size() -> None:
    groups = [[trajectory(n, 2)] for n in range(5)]
    parts = [[group[0].sample_index for group in part] for part in cut_steps(groups, 2)]
    assert parts in ([[0, 1], [2, 3, 4]], [[0, 1, 2], [3, 4]])


def test_every_cut_keeps_all_groups_and_sizes_differ_by_at_most_one() -> None:
    for total in range(40):
        for count in range(1, 13):
            parts = cut_steps([[n] for n in range(total)], count)  # type: ignore[list-item]
            assert len(parts) == count
            assert [g for part in parts for g in part] == [[n] for n in range(total)]
            sizes = {len(part) for part in parts}
            assert max(sizes) - min(sizes) <= 1, (total, count)


# ----------------------------------------------------------------------------------------------- the dataset


def test_the_length_is_known_before_the_buffer_is_filled() -> None:
    buffer = RolloutBuffer(steps_per_rollout=3, passes=2)
    assert len(buffer) == 6
    with pytest.raises(RuntimeError, match=r"empty in epoch 0: add dirl\.callbacks\.Rollout"):
        buffer[0, 0]


def test_each_pass_goes_through_the_same_steps() -> None:
    buffer = RolloutBuffer(2, 2)
    steps = [step(), step("sequence")]
    buffer.fill(7, steps)
    assert [buffer[7, i] is steps[i % 2] for i in range(4)] == [True] * 4


def test_a_step_of_another_epoch_is_an_error() -> None:
    buffer = RolloutBuffer(2, 1)
    buffer.fill(0, [step(), step()])
    with pytest.raises(RuntimeError, match=r"empty in epoch 1: add dirl\.callbacks\.Rollout"):
        buffer[1, 0]


def test_a_rollout_of_another_number_of_steps_is_refused() -> None:
    with pytest.raises(AssertionError):
        RolloutBuffer(2, 1).fill(0, [step()])


def test_the_state_brings_back_every_number_of_every_step(tmp_path: Path) -> None:
    buffer = RolloutBuffer(2, 3)
    steps = [step(budget=20), step("sequence")]
    first = steps[0].micro_batches[0]
    steps[0].micro_batches[0] = first.with_columns({"old_logprobs": torch.arange(14.0)})
    buffer.fill(5, steps)
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    restored = RolloutBuffer(2, 3)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.epoch == 5
    for ours, theirs in zip(restored.steps, steps, strict=True):
        assert (ours.loss_divisor, ours.sequences) == (theirs.loss_divisor, theirs.sequences)
        for mine, wanted in zip(ours.micro_batches, theirs.micro_batches, strict=True):
            assert mine.tensors().keys() == wanted.tensors().keys()
            for name, value in wanted.tensors().items():
                assert torch.equal(mine.tensors()[name], value), name
