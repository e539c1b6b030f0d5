"""What FSDP2 holds of the full parameters, and when, with one group for the embedding and one for the head."""

from dataclasses import replace

import pytest
from tests.unit.planning.rehearsal import Whole, fake_tensors, mesh_of, row
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dirl.modules.sharding import reshard, shard
from dirl.planning import ModelShape

UNTIED = ModelShape(64, 96, 3, 4, 2, 16, 2000, False, dense_layers=3)
TIED = replace(UNTIED, tie_word_embeddings=True)
TABLE, NORM, LAYER = UNTIED.embedding_parameters, 64, UNTIED.layer_parameters
TOKENS, SCORED = 32, 8


class FullParameters(TorchDispatchMode):
    """At every operation, the names of the parameters that are here in full, and the most elements that they have."""

    def __init__(self, model: Whole) -> None:
        super().__init__()
        self.model = model
        self.seen: list[set[str]] = []
        self.peak = 0

    def __torch_dispatch__(self, func: object, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        full = {name: p for name, p in self.model.named_parameters() if not isinstance(p, DTensor)}
        self.seen.append({name.removeprefix("backbone.").removeprefix("model.") for name in full})
        self.peak = max(self.peak, sum(p.numel() for p in full.values()))
        return func(*args, **(kwargs or {}))


def rehearsed(shape: ModelShape) -> tuple[FullParameters, FullParameters]:
    """The forward and the backward pass of a second micro-batch on one of two processes."""
    with mesh_of(2) as mesh, fake_tensors():
        model = Whole(shape)
        shard(model, mesh, mixed=False)
        model(row(TOKENS), SCORED).sum().backward()
        forward, backward = FullParameters(model), FullParameters(model)
        with forward:
            loss = model(row(TOKENS), SCORED).sum()
        with backward:
            loss.backward()
        assert all(isinstance(p, DTensor) for p in model.parameters()), "all is given back"
    return forward, backward


def test_embedding_and_head_are_never_here_together() -> None:
    for each in rehearsed(UNTIED):
        assert any("lm_head.weight" in names for names in each.seen)
        assert not any({"lm_head.weight", "embed_tokens.weight"} <= names for names in each.seen)


def test_the_most_that_is_here_is_one_table_and_the_last_norm() -> None:
    assert TABLE > LAYER
    forward, backward = rehearsed(UNTIED)
    assert forward.peak == backward.peak == TABLE + NORM


def test_the_embedding_is_not_gathered_for_its_gradient() -> None:
    _, backward = rehearsed(UNTIED)
    assert not any("embed_tokens.weight" in names for names in backward.seen)


def test_a_tied_table_is_given_back_while_the_layers_have_their_backward() -> None:
    """It stays from the embedding to the head, beside one layer; then it goes, and comes for the embedding's turn."""
    forward, backward = rehearsed(TIED)
    assert forward.peak == TABLE + LAYER
    assert backward.peak == TABLE + NORM
    in_layers = [names for names in backward.seen if any(name.startswith("layers.") for name in names)]
    assert in_layers
    assert not any("embed_tokens.weight" in names for names in in_layers)


@pytest.mark.parametrize("shape", [UNTIED, TIED])
def test_what_a_forward_without_backward_leaves_is_given_back(shape: ModelShape) -> None:
    with mesh_of(2) as mesh, fake_tensors():
        model = Whole(shape)
        shard(model, mesh, mixed=False)
        names = list(dict(model.named_parameters()))
        model(row(TOKENS), SCORED)
        assert {n for n, p in model.named_parameters() if not isinstance(p, DTensor)}
        reshard(model)
        assert all(isinstance(p, DTensor) for p in model.parameters())
    assert names == list(dict(Whole(shape).named_parameters())), "checkpoints keep their names"
    assert isinstance(model.backbone.lm_head, FSDPModule) == (shape is UNTIED)
