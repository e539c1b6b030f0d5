"""Memory as planned against training steps whose every byte is counted, at the sizes of real models."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.packed import group_pieces
from tests.unit.planning.rehearsal import (
    LiveBytes,
    Whole,
    WholeValue,
    autocast,
    build,
    fake_tensors,
    kept_per_token,
    mesh_of,
    row,
)
from tests.unit.planning.test_planned_workload import trajectory
from torch import Tensor, nn

from dirl.models import BlockDiffusionLM, NewModel, chunked_head
from dirl.modules.layers import recompute_layers
from dirl.modules.sharding import shard
from dirl.packing.rows import pack
from dirl.planning import SHAPES, ModelShape, layout_work
from dirl.planning.activations import Compute, activation_bytes
from dirl.planning.budget import largest_budget, peak
from dirl.planning.memory import TrainingSetup, memory_by_moment
from dirl.rollout import LMDeployEngine, ReplayEngine, RolloutEngine, ServerEngine, TorchEngine
from dirl.rollout.memory import EngineMemory, RolloutSize
from dirl.rollout.torch.slot_cache import SlotCache
from dirl.types import DecodingParams

GREEDY = DecodingParams()
MODES = ("none", "full", "selective")


def shallow(name: str, layers: int, vocab_size: int | None = None) -> ModelShape:
    """A named shape with fewer layers: memory is linear in them, and a rehearsal's time too."""
    shape = SHAPES[name]
    return replace(shape, num_hidden_layers=layers, dense_layers=layers, vocab_size=vocab_size or shape.vocab_size)


@pytest.mark.parametrize("compute", ["fp32", "autocast", "fsdp_bf16"])
def test_kept_activations_are_exact_without_norms_of_queries_and_keys(compute: Compute) -> None:
    shape = replace(shallow("sdar-8b", 3, vocab_size=64), head_norms=False)
    with fake_tensors():
        kept = kept_per_token(shape, compute, "none", (4096, 8192))
    planned = activation_bytes(shape, compute, "none")
    assert kept == pytest.approx(planned.kept + planned.once, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compute", ["fp32", "autocast", "fsdp_bf16"])
@pytest.mark.parametrize("name", ["sdar-1.7b", "sdar-8b"])
def test_kept_activations_are_exact(name: str, compute: Compute, mode: str) -> None:
    shape = shallow(name, 5, vocab_size=64)
    planned = activation_bytes(shape, compute, mode)
    with fake_tensors():
        kept = kept_per_token(shape, compute, mode, (4096, 8192))
    assert planned.kept + planned.once == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize("compute", ["fp32", "autocast", "fsdp_bf16"])
def test_kept_activations_of_experts_are_planned_to_two_per_cent(compute: Compute) -> None:
    """With real tensors, as the router's choice decides on shapes."""
    shape = ModelShape(128, 192, 2, 4, 2, 32, 64, False, 8, 4, 48)
    model = build(shape, torch.bfloat16 if compute == "fsdp_bf16" else torch.float32)
    kept = []
    for tokens in (1000, 3000):
        live, args = LiveBytes(), row(tokens)
        live.hold([*model.parameters(), args["input_ids"]])
        with live, autocast(compute != "fp32"):
            before = live.now
            hidden = model.model(**args).last_hidden_state
            kept.append(live.now - before)
            del hidden
    planned = activation_bytes(shape, compute, "none")
    assert planned.kept + planned.once == pytest.approx((kept[1] - kept[0]) / 2000, rel=0.02)


def rehearsed_peak(model: nn.Module, live: LiveBytes, tokens: int, scored: int, mixed: bool) -> int:
    """The greatest number of bytes in a step of two micro-batches, the weights and gradients that stay included."""
    args = row(tokens)
    with live, autocast(mixed):
        for _ in range(2):
            model(args, scored).sum().backward()
    return live.peak


@pytest.fixture
def head_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the head multiplies bf16 with an fp32 result; elsewhere it needs fp32 copies of its operands."""
    monkeypatch.setattr(chunked_head, "_operand", lambda value, dtype: value.to(dtype))
    monkeypatch.setattr(chunked_head, "_product", lambda a, b: torch.empty(len(a), b.shape[1], dtype=torch.float32))


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """Of a step before: where they exist, autograd adds to them."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        yield parameter.grad


def planned_peak(setup: TrainingSetup) -> float:
    """Without the optimizer, which the rehearsal leaves out."""
    moments = memory_by_moment(setup, None, 0.0)
    return peak({name: {**parts, "optimizer state": 0.0} for name, parts in moments.items()})[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("mixed", "tokens"), [(False, 16384), (True, 512), (True, 32768)])
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_step_on_one_device_is_planned_to_six_per_cent(mode: str, mixed: bool, tokens: int) -> None:
    shape = shallow("sdar-8b", 3)
    with fake_tensors():
        model, live = Whole(shape, mode), LiveBytes()
        live.hold([*model.parameters(), *gradients(model)])
        measured = rehearsed_peak(model, live, tokens, tokens // 3, mixed)
    setup = TrainingSetup(shape, "single", 1, mixed, mode, tokens, 1 / 3)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(("mode", "error"), [("full", 0.03), ("none", 0.02)])
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_autocasts_copies_of_weights_are_planned_where_autograd_keeps_them(mode: str, error: float) -> None:
    """With few tokens and a small vocabulary they are the greatest part: of all layers, or of the one computed anew."""
    shape = replace(shallow("sdar-8b", 6), vocab_size=1024)
    with fake_tensors():
        model, live = Whole(shape, mode), LiveBytes()
        live.hold([*model.parameters(), *gradients(model)])
        measured = rehearsed_peak(model, live, 256, 64, True)
    setup = TrainingSetup(shape, "single", 1, True, mode, 256, 1 / 4)
    assert planned_peak(setup) == pytest.approx(measured, rel=error)


@pytest.mark.parametrize(
    ("name", "processes", "mixed", "tokens", "scored", "mode"),
    [
        ("sdar-8b", 8, True, 1024, 8, "full"),  # the tables of the head's gradient are the peak, not its logits
        *(("sdar-8b", 8, True, 16384, 5000, mode) for mode in MODES),
        ("sdar-8b", 8, False, 8192, 2500, "full"),
        ("sdar-8b", 1, True, 8192, 2500, "full"),
        *(("sdar-4b", processes, True, 16384, 5000, "full") for processes in (1, 8)),
    ],
)
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_sharded_step_is_planned_to_three_per_cent(
    name: str, processes: int, mixed: bool, tokens: int, scored: int, mode: str
) -> None:
    """FSDP2 over several processes, of which one is rehearsed; embedding and head are one tensor in the 4B model."""
    shape = shallow(name, 3)
    with mesh_of(processes) as mesh, fake_tensors():
        model, live = Whole(shape, mode), LiveBytes()
        shard(model, mesh, mixed)
        live.hold([*model.parameters(), *gradients(model)])
        measured = rehearsed_peak(model, live, tokens, scored, mixed)
    setup = TrainingSetup(shape, "fsdp2", processes, mixed, mode, tokens, scored / tokens)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.03)


def with_value(model: nn.Module, value: nn.Module, live: LiveBytes, tokens: int, scored: int, mixed: bool) -> int:
    """As `rehearsed_peak`, of two models that have their turns in each micro-batch."""
    live.hold([p for each in (model, value) for p in (*each.parameters(), *gradients(each))])
    args = row(tokens)
    with live, autocast(mixed):
        for _ in range(2):
            for each in (model, value):
                each(args, scored).sum().backward()
    return live.peak


@pytest.mark.parametrize(
    ("layers", "mode", "tokens"),
    [
        (2, "full", 8192),
        pytest.param(6, "full", 8192, marks=pytest.mark.thorough),
        pytest.param(6, "none", 4096, marks=pytest.mark.thorough),
        (6, "selective", 4096),
    ],
)
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_step_with_a_value_model_is_planned_to_ten_per_cent(layers: int, mode: str, tokens: int) -> None:
    """The value's backbone is smaller than the policy's, or so much larger that the peak is in its backward pass."""
    shape, value_shape = shallow("sdar-1.7b", 4, vocab_size=32_000), shallow("sdar-8b", layers, vocab_size=32_000)
    with fake_tensors():
        measured = with_value(Whole(shape, mode), WholeValue(value_shape, mode), LiveBytes(), tokens, tokens // 3, True)
    setup = TrainingSetup(shape, "single", 1, True, mode, tokens, 1 / 3, value=value_shape)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("layers", "mixed"), [(3, True), pytest.param(9, True, marks=pytest.mark.thorough), (9, False)]
)
@pytest.mark.usefixtures("head_as_on_a_gpu")
def test_the_peak_of_a_sharded_step_with_a_value_model_is_planned_to_ten_per_cent(layers: int, mixed: bool) -> None:
    shape, value_shape = shallow("sdar-4b", 3), shallow("sdar-8b", layers)
    with mesh_of(8) as mesh, fake_tensors():
        model, value = Whole(shape, "full"), WholeValue(value_shape, "full")
        shard(model, mesh, mixed)
        shard(value, mesh, mixed)
        measured = with_value(model, value, LiveBytes(), 8192, 2500, mixed)
    setup = TrainingSetup(shape, "fsdp2", 8, mixed, "full", 8192, 2500 / 8192, value=value_shape)
    assert planned_peak(setup) == pytest.approx(measured, rel=0.1)


def test_a_value_model_has_weights_gradients_and_moments_of_its_own_but_no_head() -> None:
    shape = SHAPES["sdar-8b"]
    setup = TrainingSetup(shape, "fsdp2", 8, True, "full", 4096, 0.3)
    engine = EngineMemory(1e9, 5e9, 1e8, 1e9, 0.0)
    alone, beside = (memory_by_moment(each, engine, 0.0) for each in (setup, replace(setup, value=shape)))
    weights = 4 * (shape.parameters - shape.embedding_parameters) / 8
    for moment in alone:
        assert beside[moment]["value model"] == weights
    assert beside["layer"]["gradients"] - alone["layer"]["gradients"] == weights
    assert beside["layer"]["optimizer state"] - alone["layer"]["optimizer state"] == 2 * weights
    assert beside.keys() - alone.keys() == {"value layer", "value end"}


def test_adam_states_and_gradients_have_the_planned_bytes() -> None:
    shape = ModelShape(64, 96, 2, 4, 2, 16, 100, True, dense_layers=2)
    model = build(shape, attention="eager")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    parts = memory_by_moment(TrainingSetup(shape, "single", 1, False, "none", 8, 1.0), None, 0.0)["head"]
    assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    assert parts["optimizer state"] == sum(v.nbytes for v in moments)


def test_ddp_holds_a_second_copy_of_the_gradients_unless_they_lie_in_its_buckets() -> None:
    shape = SHAPES["sdar-1.7b"]
    setup = TrainingSetup(shape, "ddp", 8, True, "full", 1024, 0.3)
    bytes_of = {
        view: memory_by_moment(replace(setup, bucket_view=view), None, 0.0)["head"]["gradients"]
        for view in (False, True)
    }
    assert bytes_of == {False: 8 * shape.parameters, True: 4 * shape.parameters}


def test_the_largest_budget_fits_and_one_tile_more_does_not() -> None:
    setup = TrainingSetup(SHAPES["sdar-8b"], "fsdp2", 8, True, "full", 16384, 0.3)
    memory = 60e9
    largest = largest_budget(setup, None, 2e9, memory)
    used = [peak(memory_by_moment(replace(setup, tokens=largest + more), None, 2e9))[1] for more in (0, 128)]
    assert used[0] <= memory < used[1]
    assert largest_budget(setup, None, 2e9, 1e9) == 0


def test_offload_and_reference_move_bytes_between_the_moments() -> None:
    shape = SHAPES["sdar-1.7b"]
    engine = EngineMemory(1e9, 5e9, 1e8, 1e9, 0.0)
    setup = TrainingSetup(shape, "single", 1, True, "full", 4096, 0.3)
    plain = memory_by_moment(setup, engine, 0.0)
    assert plain["rollout"]["optimizer state"] == 8 * shape.parameters
    assert plain["rollout"]["KV cache"] == 5e9
    assert plain["layer"]["KV cache"] == 0.0
    moved = memory_by_moment(replace(setup, offload_optimizer=True, reference="device"), engine, 0.0)
    assert moved["rollout"]["optimizer state"] == 0.0
    assert moved["layer"]["optimizer state"] == 8 * shape.parameters
    assert moved["rollout"]["reference model"] == 2 * shape.parameters
    assert memory_by_moment(replace(setup, reference="host"), engine, 0.0)["layer"]["reference model"] == 0.0


def test_the_torch_engines_cache_is_what_its_slots_take() -> None:
    shape = ModelShape(64, 96, 2, 4, 2, 16, 100, True, dense_layers=2)
    options = {"dtype": "bfloat16", "max_batch_size": 8}
    found = TorchEngine.memory(options, shape, RolloutSize(5, 30, 4))
    cache = SlotCache(build(shape).config, slots=5, length=32, device="cpu", dtype=torch.bfloat16)
    assert found.cache == cache.keys.nbytes + cache.values.nbytes
    assert found.weights == found.resident_weights == 2 * shape.parameters


def test_an_engine_elsewhere_takes_nothing_and_one_that_says_nothing_is_not_counted() -> None:
    shape, size = SHAPES["sdar-8b"], RolloutSize(64, 4096, 4)
    for engine in (ServerEngine, ReplayEngine, RolloutEngine):
        assert engine.memory({}, shape, size).weights == 0
    assert "RolloutEngine says nothing of its memory" in RolloutEngine.memory({}, shape, size).note


@pytest.mark.parametrize("sleep", [True, False])
def test_lmdeploys_cache_is_its_blocks_or_a_share_of_what_is_free(sleep: bool) -> None:
    shape, size = SHAPES["sdar-8b"], RolloutSize(64, 4096, 4, free=100e9)
    options = {"max_batch_size": 64, "kv_blocks": 100, "kv_memory_share": 0.5, "page_tokens": 64, "tp": 1}
    options["sleep"] = sleep
    fixed = LMDeployEngine.memory(options, shape, size)
    assert fixed.cache == 100 * 64 * 2 * 36 * 8 * 128 * 2
    assert fixed.resident_cache == (0 if sleep else fixed.cache)
    assert fixed.resident_weights == (0 if sleep else 2 * shape.parameters)
    shared = LMDeployEngine.memory(options | {"kv_blocks": 0}, shape, size)
    assert shared.cache == 0.5 * (100e9 - 2 * shape.parameters)


@pytest.mark.parametrize("mode", MODES)
def test_the_peak_of_a_real_row_through_the_model_is_planned_to_ten_per_cent(mode: str) -> None:
    """Real tensors: packed trajectories, the structured attention of the CPU, the head in chunks."""
    source = NewModel(hidden_size=128, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2)
    description = source.describe()
    model = BlockDiffusionLM(source.build(description.config).train(), description.spec, "segments", head_chunk=128)
    recompute_layers(model.backbone.model.layers, mode)
    responses = [trajectory(50, 160, 4, 2, i) for i in range(4)]
    (batch,) = pack(group_pieces(responses, description.spec, [1.0] * 4, True), 9999)
    live = LiveBytes()
    live.hold([*model.parameters(), *gradients(model), *batch.tensors().values()])
    with live:
        model(batch, GREEDY).logprobs.sum().backward()
    shape, work = description.family.shape(description.config), layout_work(batch)
    share = work.scored / work.tokens
    setup = TrainingSetup(shape, "single", 1, False, mode, len(batch), share, head_chunk=128)
    assert planned_peak(setup) == pytest.approx(live.peak, rel=0.1)
