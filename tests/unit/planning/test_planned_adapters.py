"""Memory and FLOPs of LoRA as planned, against training steps whose every byte and product is counted."""

import pytest

pytest.importorskip("peft", reason="peft is not installed")

from tests.unit.planning.rehearsal import LiveBytes, Whole, build, fake_tensors, mesh_of, row
from tests.unit.planning.test_flops import SCORED, TOKENS, plain_attention
from tests.unit.planning.test_planned_memory import (
    head_as_on_a_gpu,  # noqa: F401 - a fixture
    planned_peak,
    rehearsed_peak,
    shallow,
)
from torch import Tensor, nn, zeros_like
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from dirl.models.families import family_of
from dirl.models.lora import LoRAConfig, add_adapters
from dirl.modules.sharding import shard
from dirl.planning import SHAPES, ModelShape, Work, training_flops
from dirl.planning.adapters import AdapterShape, adapter_activation_bytes
from dirl.planning.memory import TrainingSetup, memory_by_moment

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def learned(model: nn.Module) -> list[Tensor]:
    """Gradients of a step before, of the adapters alone."""
    every = [p for p in model.parameters() if p.requires_grad]
    for parameter in every:
        parameter.grad = zeros_like(parameter)
    return [p.grad for p in every]


@pytest.mark.parametrize(
    ("mixed", "tokens", "mode", "targets"),
    [
        (True, 16384, "full", None),
        (True, 16384, "none", ["down_proj"]),
        (False, 8192, "none", ATTENTION),
        pytest.param(True, 16384, "none", None, marks=pytest.mark.thorough),
        pytest.param(True, 16384, "full", ATTENTION, marks=pytest.mark.thorough),
        pytest.param(True, 8192, "selective", None, marks=pytest.mark.thorough),
        pytest.param(True, 512, "full", ["down_proj"], marks=pytest.mark.thorough),
    ],
)
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_step_on_one_device_is_planned_to_ten_per_cent(
    mixed: bool, tokens: int, mode: str, targets: list[str] | None
) -> None:
    shape, config = shallow("sdar-8b", 3), LoRAConfig(rank=32, targets=targets)
    with fake_tensors():
        model, live = Whole(shape, mode, config, mixed), LiveBytes()
        live.hold([*model.parameters(), *learned(model)])
        measured = rehearsed_peak(model, live, tokens, tokens // 3, mixed)
    setup = TrainingSetup(shape, "single", 1, mixed, mode, tokens, 1 / 3, adapters=AdapterShape.of(32, targets))
    assert planned_peak(setup) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("name", "processes", "mode"),
    [
        ("sdar-8b", 8, "full"),
        ("sdar-4b", 8, "none"),
        pytest.param("sdar-8b", 1, "full", marks=pytest.mark.thorough),
        pytest.param("sdar-4b", 8, "full", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_sharded_step_is_planned_to_ten_per_cent(name: str, processes: int, mode: str) -> None:
    shape, tokens, scored = shallow(name, 3), 8192, 2500
    with mesh_of(processes) as mesh, fake_tensors():
        model, live = Whole(shape, mode, LoRAConfig(rank=32)), LiveBytes()
        shard(model, mesh, True)
        live.hold([*model.parameters(), *learned(model)])
        measured = rehearsed_peak(model, live, tokens, scored, True)
    adapters = AdapterShape.of(32, None)
    setup = TrainingSetup(shape, "fsdp2", processes, True, mode, tokens, scored / tokens, adapters=adapters)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.1)


def test_kept_activations_of_experts_are_planned_to_three_per_cent() -> None:
    """With real tensors, as the router's choice decides on shapes."""
    tokens = (1000, 3000)
    shape = ModelShape(128, 192, 2, 4, 2, 32, 64, False, 8, 4, 48)
    model, kept = build(shape), []
    add_adapters(model, family_of(model.config), LoRAConfig(rank=8))
    for count in tokens:
        live, args = LiveBytes(), row(count)
        live.hold([*model.parameters(), args["input_ids"]])
        with live:
            before = live.now
            hidden = model.model(**args).last_hidden_state
            kept.append(live.now - before)
            del hidden
    planned = adapter_activation_bytes(shape, AdapterShape.of(8, None), "fp32", "none")
    assert planned.kept + planned.once == pytest.approx((kept[1] - kept[0]) / (tokens[1] - tokens[0]), rel=0.03)


def test_flops_of_frozen_matrices_are_those_of_one_product_in_the_backward() -> None:
    """Torch's counter; below the first adapter there is no gradient of inputs, which the plan counts: at most 10 %."""
    shape = ModelShape(64, 96, 4, 4, 2, 16, 200, False, dense_layers=4)
    AttentionInterface.register("plain", plain_attention)
    model = build(shape, attention="plain")
    add_adapters(model, family_of(model.config), LoRAConfig(rank=8))
    with FlopCounterMode(display=False) as forward:
        logits = model.lm_head(model.model(**row(TOKENS)).last_hidden_state[0, :SCORED])
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    adapters = AdapterShape.of(8, None).parameters(shape)
    assert adapters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    planned = training_flops(shape, Work(TOKENS, TOKENS**2, SCORED), "none", adapters)
    assert planned.forward.total == pytest.approx(forward.get_total_flops(), rel=1e-3)
    assert backward.get_total_flops() <= planned.backward.total
    assert planned.backward.total == pytest.approx(backward.get_total_flops(), rel=0.1)


def test_adapters_alone_have_gradients_and_moments_and_the_reference_is_no_second_model() -> None:
    shape, adapters = SHAPES["sdar-8b"], AdapterShape.of(32, None)
    setup = TrainingSetup(shape, "fsdp2", 8, True, "full", 4096, 0.3, adapters=adapters)
    parts, learned_bytes = memory_by_moment(setup, None, 0.0)["layer"], 4 * adapters.parameters(shape) / 8
    assert parts["weights"] == 2 * shape.parameters / 8 + learned_bytes
    assert (parts["gradients"], parts["optimizer state"]) == (learned_bytes, 2 * learned_bytes)


def test_a_layer_that_the_plan_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="'in_proj' is none of the layers that plan knows: q_proj"):
        AdapterShape.of(8, ["in_proj"])
