"""Llama's and Qwen3's layers against their equations, and what becomes of the types and names of such checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.llama_oracle import Sizes, llama_logits
from tests.reference import block_causal_mask, hf_logits
from tests.tiny import TinyModel
from tests.unit.models.test_parity import assert_engine_and_trainer_agree
from transformers import LlamaConfig, PreTrainedModel

from dirl.models import ModelFamily, PretrainedModel, export_model
from dirl.models.families import family_of
from dirl.models.families.dream_reasoner import DreamReasonerConfig, DreamReasonerFamily
from dirl.models.families.llama import BlockLlamaFamily
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.families.weights import weight_shapes

FAMILIES = (BlockLlamaFamily, DreamReasonerFamily, Qwen3Family)


def tiny(family: type[ModelFamily]) -> TinyModel:
    source = TinyModel(4, tied=False)
    source.family = family()
    return source


def sizes_of(backbone: PreTrainedModel) -> Sizes:
    config = backbone.config
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return Sizes(config.num_hidden_layers, *heads, config.rope_parameters["rope_theta"], config.rms_norm_eps)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_published_equations(family: type[ModelFamily]) -> None:
    backbone, _ = tiny(family).make()
    ids, mask = [1, 5, 3, 0, 2, 2, 6, 4, 11, 3, 11, 11], block_causal_mask(12, 4)
    with torch.no_grad():
        found = hf_logits(backbone, "eager")(torch.tensor([ids]), mask, torch.arange(12)[None])[0]
    wanted = llama_logits(dict(family().weights(backbone)), sizes_of(backbone), ids, mask)
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_trainer_and_engine_give_tokens_the_same_log_probabilities(family: type[ModelFamily]) -> None:
    source = tiny(family)
    assert_engine_and_trainer_agree(source)


@pytest.mark.parametrize(
    ("family", "kind", "architecture"),
    [
        (BlockLlamaFamily, "block_llama", "BlockLlamaForCausalLM"),
        (DreamReasonerFamily, "sdar", "SDARForCausalLM"),
    ],
)
def test_an_export_is_read_again_with_the_same_bits(
    family: type[ModelFamily], kind: str, architecture: str, tmp_path: Path
) -> None:
    source = tiny(family)
    description = source.describe()
    backbone = source.build(description.config)
    export_model(tmp_path, description, family().weights(backbone), weight_shapes(family(), backbone))
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == (kind, [architecture])
    assert load_file(tmp_path / "model.safetensors").keys() == backbone.state_dict().keys()
    again = PretrainedModel(str(tmp_path))
    config = again.describe().config
    assert again.describe().spec == description.spec
    made = again.build(config).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in backbone.state_dict().items())


def test_a_llama_with_code_of_its_own_keeps_its_type() -> None:
    family = BlockLlamaFamily()
    assert family.exported_type(LlamaConfig()) == "block_llama"
    code = {"AutoModelForCausalLM": "modeling_stable_diffcoder.StableDiffcoderForCausalLM"}
    assert family.exported_type(LlamaConfig(auto_map=code)) == "llama"


def test_shapes_count_the_parameters_of_the_models() -> None:
    for family in FAMILIES:
        backbone, _ = tiny(family).make()
        assert family().shape(backbone.config).parameters == sum(p.numel() for p in backbone.parameters())
    assert BlockLlamaFamily.named_shapes["stable-diffcoder-8b"].parameters == pytest.approx(8.25e9, rel=0.01)
    assert DreamReasonerFamily.named_shapes["dreamreasoner-8b"].parameters == 8_190_735_360


def test_switches_that_a_family_is_not_built_for_are_refused() -> None:
    with pytest.raises(ValueError, match="model 'mine': mlp_bias=true"):
        BlockLlamaFamily().check(LlamaConfig(mlp_bias=True), "mine")
    with pytest.raises(ValueError, match="model 'mine': attention_bias=true in its config; DreamReasoner has none"):
        DreamReasonerFamily().check(DreamReasonerConfig(attention_bias=True), "mine")


def test_a_config_without_the_size_of_a_head_has_it_from_its_width() -> None:
    config = DreamReasonerConfig(hidden_size=64, num_attention_heads=4, head_dim=None)
    assert config.head_dim == 16 and family_of(config).shape(config).head_dim == 16
