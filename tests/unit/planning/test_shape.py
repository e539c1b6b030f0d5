"""Shapes: numbers of parameters against real models and published ones; where a shape may come from."""

import json
from pathlib import Path

import pytest
from tests.unit.planning.rehearsal import build, fake_tensors

from dirl.models.families import family_of
from dirl.planning import SHAPES, ModelShape
from dirl.planning.named_shapes import named_or_file

SMALL = ModelShape(32, 64, 3, 4, 2, 8, 100, False, dense_layers=3)
TIED = ModelShape(32, 48, 2, 4, 4, 16, 100, True, dense_layers=2)
EXPERTS = ModelShape(32, 64, 3, 4, 2, 8, 100, False, 8, 2, 16)
MIXED = ModelShape(32, 64, 3, 4, 2, 8, 100, False, 8, 2, 16, dense_layers=1)


@pytest.mark.parametrize("shape", [SMALL, TIED, EXPERTS, MIXED])
def test_a_model_of_the_shape_has_as_many_parameters(shape: ModelShape) -> None:
    model = build(shape)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    assert max(layers) == shape.layer_parameters
    assert shape.root_parameters == shape.parameters - sum(layers)
    assert family_of(model.config).shape(model.config) == shape


@pytest.mark.parametrize(
    ("name", "billions"), [("sdar-1.7b", 1.72), ("sdar-4b", 4.02), ("sdar-8b", 8.19), ("sdar-30b-a3b", 30.53)]
)
def test_a_named_shape_has_the_published_size(name: str, billions: float) -> None:
    with fake_tensors():
        model = build(SHAPES[name])
    assert sum(p.numel() for p in model.parameters()) == SHAPES[name].parameters
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_of_the_experts_a_token_is_multiplied_with_its_own() -> None:
    # Qwen3-30B-A3B: 3.3 B active parameters, of which 0.6 B are embedding and head
    shape = SHAPES["sdar-30b-a3b"]
    assert (shape.multiplied_weights + shape.root_parameters) / 1e9 == pytest.approx(3.35, abs=0.05)


@pytest.mark.parametrize("shape", [SMALL, MIXED])
def test_a_config_file_gives_the_shape_and_its_block_size(shape: ModelShape, tmp_path: Path) -> None:
    config = build(shape).config.to_dict() | {"block_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert named_or_file(str(tmp_path / "config.json")) == named_or_file(str(tmp_path)) == (shape, 8)


def test_a_model_that_is_neither_named_nor_there_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"model_config='sdar-7b' is no file here.*sdar-1\.7b.*sdar-8b"):
        named_or_file("sdar-7b")
