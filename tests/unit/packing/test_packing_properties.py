"""Whatever is packed: every token of a response is scored once, with its own numbers, and nothing else is."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.packed import group_pieces, one_row

from dirl.batches import IGNORE, StepBatch
from dirl.packing.pieces import alone, clean
from dirl.packing.rows import empty_batch, pack
from dirl.types import ModelSpec, Trajectory

MASK = 99


@st.composite
def groups(draw: st.DrawFn) -> tuple[ModelSpec, list[list[Trajectory]]]:
    """Groups of one prompt each; a token's log-prob and its trajectory's advantage say whose it is."""
    size = draw(st.sampled_from([1, 2, 4]))
    spec = ModelSpec(size, MASK, (98,), 98, 100, (97,))
    made, number = [], 0
    for name in range(draw(st.integers(1, 3))):
        prompt = tuple(draw(st.lists(st.integers(0, 96), min_size=1, max_size=7)))
        group = []
        for index in range(draw(st.integers(1, 3))):
            length = -len(prompt) % size + size * draw(st.integers(0 if len(prompt) % size else 1, 3))
            number += 1
            group.append(trajectory(draw, spec, str(name), index, prompt, length, number))
        made.append(group)
    return spec, made


def trajectory(
    draw: st.DrawFn, spec: ModelSpec, name: str, index: int, prompt: tuple[int, ...], length: int, number: int
) -> Trajectory:
    """Steps of a block are 1, 2, ... without a gap, in any order."""
    steps: list[int] = []
    while len(steps) < length:
        room = spec.block_size - (len(prompt) + len(steps)) % spec.block_size
        counts = [draw(st.integers(1, room))]
        while sum(counts) < room:
            counts.append(draw(st.integers(1, room - sum(counts))))
        block = [step for step, count in enumerate(counts, 1) for _ in range(count)]
        steps += draw(st.permutations(block))
    return Trajectory(
        prompt_id=name,
        sample_index=index,
        prompt_ids=prompt,
        response_ids=tuple(draw(st.lists(st.integers(0, 96), min_size=length, max_size=length))),
        response_length=length,
        step_map=tuple(steps),
        behaviour_logprobs=tuple(-float(1000 * number + i + 1) for i in range(length)),
        finish_reason="length",
        policy_version=0,
        advantage=float(number),
    )


@pytest.mark.property
@given(groups(), st.integers(1, 80), st.booleans(), st.booleans())
def test_every_response_token_is_scored_once_and_all_else_holds_zeros(
    made: tuple[ModelSpec, list[list[Trajectory]]], budget: int, share_prompt: bool, padded: bool
) -> None:
    spec, found = made
    segments, first = [], 0
    for group in found:
        group_weights = [2.0**-t.sample_index for t in group]
        segments += group_pieces(group, spec, group_weights, share_prompt, first)
        first += len(group)
    rows = pack(segments, budget) + ([empty_batch(spec)] if padded else [])
    seen: Counter = Counter()
    for row in rows:
        assert all(value.isfinite().all() for value in row.tensors().values())
        scored = row.target_ids != IGNORE
        if not scored.any():
            assert padded and not row.columns
            continue
        assert not row.columns["behaviour_logprobs"][~scored].any() and not row.loss_weights[~scored].any()
        assert (row.input_ids[scored] == MASK).all() and (row.view_ids[scored] > 0).all()
        numbers = (row.columns["advantages"], row.trajectory_ids + 1.0)
        assert torch.equal(*(n[scored] for n in numbers)), "a token, or a part of a response, of another trajectory"
        columns = (numbers[0], row.position_ids, row.target_ids, row.columns["behaviour_logprobs"], row.loss_weights)
        seen.update(zip(*(c[scored].tolist() for c in columns), strict=True))
    wanted = Counter(
        (t.advantage, len(t.prompt_ids) + i, token, logprob, 2.0**-t.sample_index)
        for t in (t for group in found for t in group)
        for i, (token, logprob) in enumerate(zip(t.response_ids, t.behaviour_logprobs, strict=True))
    )
    assert seen == wanted


@pytest.mark.property
@given(groups(), st.data())
def test_a_row_with_what_is_not_known_goes_to_a_file_and_a_device_and_back(
    made: tuple[ModelSpec, list[list[Trajectory]]], data: st.DataObject
) -> None:
    """What is not there stays away, on the way through `map` and through the plain containers of a checkpoint."""
    spec, found = made
    row = one_row(group_pieces(found[0], spec)[0])
    if data.draw(st.booleans()):
        row = row.with_columns({"old_logprobs": torch.randn(len(row))})
    step = StepBatch.from_state(StepBatch([row.to("cpu")], 1.0, 1, 100, 7).state())
    one, other = row.tensors(), step.micro_batches[0].tensors()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_clean_block_has_no_targets() -> None:
    row = one_row(alone(clean(torch.tensor([[1, 2]]).numpy(), 0, trajectory=0)))
    assert row.target_ids.tolist() == [IGNORE, IGNORE]
