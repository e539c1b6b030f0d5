"""The values between the parts: what they refuse and what they count."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dirl.batches import Layout, PackedBatch, StepBatch
from dirl.types import DecodingParams, ModelSpec, Trajectory

SPEC = ModelSpec(block_size=4, mask_token_id=7, stop_token_ids=(3,), pad_token_id=0, vocab_size=10)


def trajectory(**more: Any) -> Trajectory:
    """Prompt of 5 tokens, response of 7: the rest of block 1, and block 2."""
    values = {
        "prompt_id": "q-1",
        "sample_index": 2,
        "prompt_ids": (1, 2, 3, 4, 5),
        "response_ids": (1, 2, 3, 4, 5, 6, 8),
        "response_length": 6,
        "step_map": (2, 1, 2, 4, 1, 3, 2),
        "behaviour_logprobs": (-0.1, -1.0000000000000002, -3e-17, 0.0, -5.5, -0.25, -1e300),
        "finish_reason": "stop",
        "policy_version": 12,
    }
    return Trajectory(**values | more)


# ----------------------------------------------------------------------------------------------- the model


@pytest.mark.property
@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_the_banned_ranges_hold_the_mask_token_and_unknown_ids_and_no_other(unknown: set[int], mask: int) -> None:
    spec = ModelSpec(4, mask, (3,), 0, 61, tuple(sorted(unknown)))
    assert {i for first, end in spec.banned for i in range(first, end)} == unknown | {mask}
    bounds = [bound for span in spec.banned for bound in span]
    assert bounds == sorted(set(bounds)), "each range is as long as it can be"


# ------------------------------------------------------------------------------------------ trajectories


def test_the_text_ends_with_the_stop_token_and_the_key_is_the_sample() -> None:
    assert trajectory().text_ids == (1, 2, 3, 4, 5, 6)
    assert trajectory().key == ("q-1", 2)


@pytest.mark.parametrize(
    ("prompt_length", "steps", "block_size", "wanted"),
    [
        (5, (2, 1, 2, 4, 1, 3, 2), 4, 2 + 4),  # three positions of block 1, then block 2
        (4, (1, 1, 1, 1, 3, 2, 1, 3), 4, 1 + 3),
        (3, (1, 2, 2, 3, 4), 4, 1 + 4),
        (3, (1,), 4, 1),
        (0, (4, 3, 2, 1), 4, 4),
        (9, (1, 1, 1), 1, 3),
        (2, (1, 2, 2, 3, 1, 1), 8, 3),
    ],
)
def test_denoising_steps_are_summed_over_blocks(
    prompt_length: int, steps: tuple[int, ...], block_size: int, wanted: int
) -> None:
    prompt = tuple(range(prompt_length))
    assert trajectory(prompt_ids=prompt, step_map=steps).denoising_steps(block_size) == wanted


def test_a_whole_trajectory_passes_the_check() -> None:
    trajectory().check(SPEC)
    short = {"response_ids": (1, 2, 3, 9), "step_map": (1,) * 4, "behaviour_logprobs": (0.0,) * 4, "response_length": 4}
    trajectory(prompt_ids=(), **short).check(SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_map": (1,) * 6}, "have 7, 6 and 7 entries"),
        ({"behaviour_logprobs": (0.0,) * 8}, "have 7, 7 and 8 entries"),
        ({"prompt_ids": (1, 2, 3, 4)}, r"prompt \(4\) plus response \(7\) tokens do not fill blocks of block_size=4"),
        ({"response_ids": (), "step_map": (), "behaviour_logprobs": ()}, r"response \(0\)"),
        ({"response_length": 0}, "response_length=0 is not within 1..7"),
        ({"response_length": 8}, "response_length=8 is not within 1..7"),
        ({"step_map": (2, 1, 2, 4, 0, 3, 2)}, "step_map holds 0"),
        ({"response_ids": (1, 2, 3, 4, 5, 6, 10)}, "token id 10 does not fit vocab_size=10"),
        ({"prompt_ids": (1, 2, 3, 4, 11)}, "token id 11 does not fit vocab_size=10"),
        ({"response_ids": (1, 2, 3, 4, 5, -1, 8)}, "token id -1 does not fit vocab_size=10"),
        ({"response_ids": (1, 2, 3, 4, 5, 7, 8)}, "holds the mask token 7"),
    ],
)
def test_what_no_model_of_this_spec_can_have_made_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"trajectory q-1#2: .*{message}"):
        trajectory(**change).check(SPEC)


# -------------------------------------------------------------------------------------- decoding settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strategy", "random"),
        ("confidence", "mean"),
        ("threshold", 0.0),
        ("threshold", 1.1),
        ("denoising_steps", 0),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("max_response_tokens", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"decoding\.{name}={value!r}: use ".replace(".1", r"\.1")):
        DecodingParams(**{name: value})


def test_the_ends_of_the_ranges_are_allowed() -> None:
    ends = {"threshold": 1.0, "denoising_steps": 1, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 1.0}
    decoding = DecodingParams(**ends, max_response_tokens=1)
    assert {name: getattr(decoding, name) for name in ends} == ends


@pytest.mark.parametrize(("steps", "block_size", "wanted"), [(None, 4, 1), (1, 4, 4), (2, 4, 2), (3, 8, 2), (9, 4, 1)])
def test_the_quota_is_block_size_over_steps_and_at_least_one(steps: int | None, block_size: int, wanted: int) -> None:
    assert DecodingParams(denoising_steps=steps).quota(block_size) == wanted


# -------------------------------------------------------------------------------------------------- tensors


def batch(length: int = 3) -> PackedBatch:
    names = [f.name for f in dataclasses.fields(PackedBatch) if f.name != "columns"]
    own = {name: torch.full((length,), float(i) if name == "loss_weights" else i) for i, name in enumerate(names)}
    return PackedBatch(**own, columns={"advantages": torch.full((length,), float(len(names)))})


def test_a_batch_maps_each_of_its_tensors_and_nothing_else() -> None:
    doubled = batch().map(lambda tensor: 2 * tensor)
    assert all(torch.equal(value, 2 * batch().tensors()[name]) for name, value in doubled.tensors().items())
    assert len(doubled) == 3


def test_the_layout_of_a_batch_is_its_four_columns() -> None:
    found, whole = batch().layout, batch()
    assert found == Layout(found.group_ids, found.branch_ids, found.block_ids, found.view_ids)
    for name in ("group_ids", "branch_ids", "block_ids", "view_ids"):
        assert torch.equal(getattr(found, name), getattr(whole, name))


def test_a_step_moves_all_its_micro_batches_and_keeps_its_numbers() -> None:
    step = StepBatch([batch(2), batch(3)], 5.0, 4, 100, 5).to("meta")
    assert all(t.device.type == "meta" for b in step.micro_batches for t in b.tensors().values())
    assert [len(b) for b in step.micro_batches] == [2, 3]
    assert (step.loss_divisor, step.sequences, step.token_budget, step.response_tokens) == (5.0, 4, 100, 5)
