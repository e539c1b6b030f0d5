"""Recomputed and compiled layers give the gradient of plain ones, and keep what they say they keep."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from tests.packed import group_pieces
from tests.tiny import flat_gradient, prompt, sample_groups
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from dirl.batches import PackedBatch
from dirl.models import BlockDiffusionLM, NewModel
from dirl.modules import SFTModule
from dirl.modules.layers import Checkpointing, compile_layers, recompute_layers
from dirl.packing.rows import pack
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.4, max_response_tokens=9)
LAYERS = 4
SOURCE = NewModel(
    block_size=4,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    initializer_range=0.35,
    alphabet="01234+=",
)


@cache
def batches() -> list[PackedBatch]:
    """Rows of several lengths."""
    spec = SOURCE.describe().spec
    groups = sample_groups(SOURCE, [prompt(n) for n in (3, 8, 6)], 2, PARAMS)
    segments = [s for group in groups for s in group_pieces(group, spec, [1.0] * len(group), True)]
    rows = [pack([segment], 1000)[0] for segment in segments] + pack(segments, 1000)
    assert len({len(row) for row in rows}) >= 3
    return rows


def model(mode: Checkpointing, compiled: bool = False) -> BlockDiffusionLM:
    description = SOURCE.describe()
    backbone = SOURCE.build(description.config).train()
    recompute_layers(backbone.model.layers, mode)
    if compiled:
        compile_layers(backbone.model.layers, backend="aot_eager")
    return BlockDiffusionLM(backbone, description.spec, "dense")


def gradient(model: BlockDiffusionLM) -> Tensor:
    losses = (model(batch, PARAMS).logprobs.sum() for batch in batches())
    return sum(flat_gradient(loss, model.parameters()) for loss in losses)


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputed_layers_have_the_same_gradient(mode: Checkpointing) -> None:
    assert torch.equal(gradient(model(mode)), gradient(model("none")))


@pytest.mark.parametrize("mode", ["none", pytest.param("full", marks=pytest.mark.thorough), "selective"])
def test_compiled_layers_have_the_same_gradient_and_share_few_graphs(mode: Checkpointing) -> None:
    """One graph for the first length and one for all others, for each kind of layer."""
    torch._dynamo.reset()
    counters.clear()
    wanted = gradient(model("none"))
    difference = gradient(model(mode, compiled=True)) - wanted
    assert float(difference.norm() / wanted.norm()) < 1e-5
    assert 1 <= counters["stats"]["unique_graphs"] <= (4 if mode == "selective" else 2)


def saved_bytes(mode: Checkpointing) -> int:
    """What the backward pass keeps of the layers, each storage once."""
    storages: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    chosen = model(mode)
    parameters = {p.untyped_storage().data_ptr() for p in chosen.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        hidden = chosen.hidden_states(batches()[-1])
    assert hidden.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def test_full_keeps_the_inputs_of_the_layers_and_selective_half_of_the_rest() -> None:
    none, full, selective = (saved_bytes(mode) for mode in ("none", "full", "selective"))
    tokens = len(batches()[-1])
    assert full < none / 5
    assert full >= LAYERS * tokens * 32 * 4
    assert selective == pytest.approx((none + full) / 2, rel=0.05)


def test_selective_keeps_the_layer_that_the_backward_pass_begins_with() -> None:
    layers = model("selective").backbone.model.layers
    assert ["forward" in vars(layer) for layer in layers] == [True, False, True, False]


def test_scoring_without_gradient_keeps_nothing() -> None:
    with torch.no_grad():
        assert not model("full").hidden_states(batches()[0]).requires_grad


@pytest.mark.parametrize("old", [True, False, "all"])
def test_a_checkpointing_mode_that_does_not_exist_is_an_error(old: object) -> None:
    with pytest.raises(ValueError, match=f"activation_checkpointing={old!r}: use none .*, full .* or selective"):
        SFTModule(SOURCE, activation_checkpointing=old)


def test_layers_are_compiled_for_more_kinds_of_inputs_than_dynamo_allows_by_itself() -> None:
    class Layer(nn.Module):
        def forward(self, hidden_states: Tensor, kind: str) -> Tensor:
            return hidden_states * len(kind)

    compiled = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    layer, kinds = Layer(), ["x" * n for n in range(1, 13)]
    compile_layers([layer], backend=backend)
    assert len(kinds) > torch._dynamo.config.recompile_limit
    assert [layer(torch.ones(()), kind).item() for kind in kinds] == list(range(1, 13))
    assert len(compiled) == len(kinds), "what is over the limit ran eagerly"
