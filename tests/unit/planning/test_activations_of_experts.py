"""Activations of experts as planned, against the live bytes of real layers; no route of the tokens changes them."""

from dataclasses import replace

import pytest
import torch
from tests.unit.planning.rehearsal import LiveBytes, Whole, autocast, build, fake_tensors, kept_per_token, mesh_of, row
from tests.unit.planning.test_planned_memory import gradients, head_as_on_a_gpu, planned_peak, rehearsed_peak  # noqa: F401

from dirl.modules.layers import Checkpointing
from dirl.modules.sharding import shard
from dirl.planning import SHAPES, ModelShape
from dirl.planning.activations import Compute, activation_bytes
from dirl.planning.memory import TrainingSetup

EXPERTS = ModelShape(128, 192, 2, 4, 2, 32, 64, False, 8, 4, 48)
LLADA2 = ModelShape(128, 192, 4, 4, 2, 32, 64, False, 8, 4, 48, 2, shared_expert_size=48, fused=True)
MIXED = ModelShape(128, 512, 4, 4, 2, 32, 64, False, 8, 2, 48, dense_layers=2)


SHAPES_HERE = {"experts": EXPERTS, "mixed": MIXED, "llada2": LLADA2}


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        pytest.param(
            shape, mode, id=f"{name}-{mode}", marks=[pytest.mark.thorough] * (mode != "none" and name == "llada2")
        )
        for name, shape in SHAPES_HERE.items()
        for mode in ("none", "full", "selective")
    ],
)
@pytest.mark.parametrize("compute", ["fp32", "autocast", "fsdp_bf16"])
def test_kept_activations_of_experts_are_exact(shape: ModelShape, compute: Compute, mode: Checkpointing) -> None:
    """To the 4 bytes per choice that normalised weights keep, which these small models do not have."""
    planned = activation_bytes(shape, compute, mode)
    assert planned.kept + planned.once == pytest.approx(kept_per_token(shape, compute, mode, (500, 1500)), rel=3e-3)


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("name", ["sdar-30b-a3b", "llada2.0-mini"])
def test_those_of_published_models_are_exact(name: str, mode: Checkpointing) -> None:
    """In bf16, the one dtype in which torch knows a grouped product without contents."""
    shape = replace(SHAPES[name], num_hidden_layers=3, vocab_size=64)
    with fake_tensors():
        kept = kept_per_token(shape, "fsdp_bf16", mode, (4096, 8192))
    planned = activation_bytes(shape, "fsdp_bf16", mode)
    assert planned.kept + planned.once == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize("compute", ["fp32", "fsdp_bf16"])
def test_what_a_layer_makes_on_top_of_what_it_keeps_is_planned(compute: Compute) -> None:
    """One layer, wide in its experts: a forward ends with their results sorted twice, which the plan has to hold."""
    shape = replace(EXPERTS, num_hidden_layers=1)
    model = build(shape, torch.bfloat16 if compute == "fsdp_bf16" else torch.float32)
    peaks = []
    for tokens in (1000, 3000):
        live, args = LiveBytes(), row(tokens)
        live.hold([*model.parameters(), args["input_ids"]])
        with live, autocast(compute != "fp32"):
            before = live.now
            model.model(**args).last_hidden_state.sum().backward()
        peaks.append(live.peak - before)
        model.zero_grad()
    planned = activation_bytes(shape, compute, "none")
    assert planned.kept + planned.once + planned.at_work == pytest.approx((peaks[1] - peaks[0]) / 2000, rel=0.1)


@pytest.mark.usefixtures("head_as_on_a_gpu")
@pytest.mark.parametrize("mode", ["none", pytest.param("full", marks=pytest.mark.thorough)])
def test_the_peak_of_a_step_of_llada2_is_planned_to_ten_per_cent(mode: Checkpointing) -> None:
    """Real tensors, as the router's choice decides on shapes."""
    shape, tokens = replace(LLADA2, vocab_size=600), 1000
    model, live = Whole(shape, mode), LiveBytes()
    live.hold([*model.parameters(), *gradients(model)])
    measured = rehearsed_peak(model, live, tokens, tokens // 3, True)
    setup = TrainingSetup(shape, "single", 1, True, mode, tokens, 1 / 3)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.1)


@pytest.mark.usefixtures("head_as_on_a_gpu")
@pytest.mark.parametrize(
    ("name", "mode", "tokens"),
    [
        ("llada2.0-mini", "full", 4096),
        *(
            pytest.param(name, mode, tokens, marks=pytest.mark.thorough)
            for name in ("llada2.0-mini", "sdar-30b-a3b")
            for mode in ("none", "full")
            for tokens in (4096, 16384)
        ),
    ],
)
def test_the_peak_of_a_sharded_step_of_published_models_is_planned_to_seven_per_cent(
    name: str, mode: Checkpointing, tokens: int
) -> None:
    """FSDP2 over 8 processes, of which one is rehearsed."""
    shape = replace(SHAPES[name], num_hidden_layers=4)
    with mesh_of(8) as mesh, fake_tensors():
        model, live = Whole(shape, mode), LiveBytes()
        shard(model, mesh, True)
        live.hold([*model.parameters(), *gradients(model)])
        measured = rehearsed_peak(model, live, tokens, 1500, False)
    setup = TrainingSetup(shape, "fsdp2", 8, True, mode, tokens, 1500 / tokens)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.07)
