"""Weights read tensor by tensor are those that transformers loads, dense and mixture of experts, tied and untied."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from dirl.finite import check_weight
from dirl.models import NewModel, PretrainedModel, save_model
from dirl.models.families import family_of
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.families.weights import empty_backbone
from dirl.models.tokenizer import new_tokenizer
from dirl.models.weight_files import WeightFiles

SHAPE = {
    "vocab_size": len(new_tokenizer("01+=")),
    "pad_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def published(folder: Path, moe: bool = False, tied: bool = False, shards: bool = False) -> PretrainedModel:
    """A folder as Qwen3 is published; the experts of a layer are separate matrices in it."""
    torch.manual_seed(0)
    shape = SHAPE | {"tie_word_embeddings": tied}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**EXPERTS, **shape)) if moe else Qwen3ForCausalLM(Qwen3Config(**shape))
    model.save_pretrained(folder, max_shard_size="20KB" if shards else "5GB")
    new_tokenizer("01+=").save_pretrained(folder)
    return PretrainedModel(str(folder), block_size=4)


def filled(source: PretrainedModel) -> PreTrainedModel:
    config = source.describe().config
    files = source.weight_files(config)
    assert files is not None
    model = empty_backbone(family_of(config), config, torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())
    for index, layer in enumerate(model.model.layers):
        files.fill(layer, f"model.layers.{index}.")
    files.fill(model)
    model.tie_weights()
    return model


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    first, second = (dict(m.named_parameters(remove_duplicate=False)) | dict(m.named_buffers()) for m in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "many files"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_weights_read_one_by_one_are_those_that_transformers_loads(
    moe: bool, tied: bool, shards: bool, tmp_path: Path
) -> None:
    source = published(tmp_path, moe, tied, shards)
    if moe:
        names = [name for file in tmp_path.glob("*.safetensors") for name in load_file(file)]
        assert "model.layers.0.mlp.experts.11.gate_proj.weight" in names
    config = source.describe().config
    model = filled(source)
    assert_equal(model, source.build(config))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.dtype == torch.float32


def test_what_this_package_saves_is_read_back(tmp_path: Path) -> None:
    source = NewModel(hidden_size=32, num_hidden_layers=2, head_dim=8, alphabet="01+=")
    description = source.describe()
    backbone = source.build(description.config)
    save_model(tmp_path, backbone, description.tokenizer)
    assert_equal(filled(PretrainedModel(str(tmp_path))), backbone)
    assert source.weight_files(description.config) is None


def test_the_dtype_is_the_sources(tmp_path: Path) -> None:
    source = published(tmp_path)
    source.dtype = "bfloat16"
    assert {p.dtype for p in filled(source).parameters()} == {torch.bfloat16}


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    source = published(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: torch.zeros(47, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{name} has shape \(47, 32\), the model's config says \(48, 32\)"):
        filled(source)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"no tensor '{name}'"):
        filled(source)


def test_an_expert_that_is_missing_is_an_error(tmp_path: Path) -> None:
    source = published(tmp_path, moe=True)
    weights = load_file(tmp_path / "model.safetensors")
    gone = {n for n in weights if "layers.1.mlp.experts.11." in n}
    assert gone
    save_file({n: v for n, v in weights.items() if n not in gone}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.1\.mlp\.experts\.11\.gate_proj\.weight'"):
        filled(source)


def test_a_folder_without_safetensors_is_built_as_a_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = published(tmp_path)
    config = source.describe().config
    (tmp_path / "model.safetensors").unlink()
    assert source.weight_files(config) is None
    assert "every process builds the whole model" in caplog.text


def test_an_index_is_followed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    assert WeightFiles(tmp_path, Qwen3Family()).read("a", torch.Size([2])).tolist() == [1, 1]


def test_weights_that_would_be_random_are_an_error_of_the_whole_build_too(tmp_path: Path) -> None:
    source = published(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights .* '{name}' the first: they would be random"):
        source.build(source.describe().config)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("way", ["whole", "by layer"])
def test_a_source_with_a_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor(
    tmp_path: Path, number: float, moe: bool, way: str
) -> None:
    source = published(tmp_path, moe)
    read = source.build if way == "whole" else lambda config: filled(source)
    read(source.describe().config)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.7.down_proj.weight" if moe else "model.layers.1.mlp.down_proj.weight"
    weights[name][3, 2] = number
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    named = "model.layers.1.mlp.experts.down_proj" if moe else name
    with pytest.raises(
        ValueError, match=rf"weight {named} holds numbers that are not finite \(1 of \d+\): nothing can"
    ):
        read(source.describe().config)


def test_a_weight_whose_sum_alone_is_too_large_is_finite() -> None:
    large = torch.full((4, 4), 1e38)
    assert check_weight("w", large, "here", "nothing") is large
    assert check_weight("w", torch.arange(3), "here", "nothing").tolist() == [0, 1, 2]
    for wrong in (float("nan"), float("inf"), float("-inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with pytest.raises(ValueError, match=r"\(2 of 16\)"):
                check_weight(
                    "w",
                    torch.ones(4, 4)
                    .index_fill(0, torch.tensor([2]), 0.0)
                    .index_put((torch.tensor([0, 1]), torch.tensor([1, 1])), torch.tensor(wrong))
                    .to(dtype),
                    "here",
                    "nothing",
                )
