"""Activations of experts as planned, against the live bytes of real layers; no route of the tokens changes them."""

from dataclasses import replace

import pytest
import torch
from tests.unit.planning.rehearsal import LiveBytes, autocast, build, fake_tensors, kept_per_token, row

from dirl.modules.layers import Checkpointing
from dirl.planning import SHAPES, ModelShape
from dirl.planning.activations import Compute, activation_bytes

EXPERTS = ModelShape(128, 192, 2, 4, 2, 32, 64, False, 8, 4, 48)
MIXED = ModelShape(128, 512, 4, 4, 2, 32, 64, False, 8, 2, 48, dense_layers=2)


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
@pytest.mark.parametrize("compute", ["fp32", "autocast", "fsdp_bf16"])
@pytest.mark.parametrize("shape", [EXPERTS, MIXED], ids=["experts", "mixed"])
def test_kept_activations_of_experts_are_exact(shape: ModelShape, compute: Compute, mode: Checkpointing) -> None:
    """To the 4 bytes per choice that normalised weights keep, which these small models do not have."""
    planned = activation_bytes(shape, compute, mode)
    assert planned.kept + planned.once == pytest.approx(kept_per_token(shape, compute, mode, (500, 1500)), rel=3e-3)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_those_of_a_30b_model_are_exact(mode: Checkpointing) -> None:
    """In bf16, the one dtype in which torch knows a grouped product without contents."""
    shape = replace(SHAPES["sdar-30b-a3b"], num_hidden_layers=3, vocab_size=64)
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
