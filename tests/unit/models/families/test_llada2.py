"""LLaDA2 against its equations, in trainer, engine and files; its router in fp32; what is no LLaDA2.0 is refused."""

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import jaxtyped
from safetensors.torch import load_file
from tests.llada2_oracle import Sizes, llada2_logits, route
from tests.reference import block_causal_mask, hf_logits
from tests.tiny import TinyModel
from tests.typechecker import check
from tests.unit.models.test_parity import assert_engine_and_trainer_agree
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from dirl.models import PretrainedModel, export_model, save_model
from dirl.models.backbones import llada2
from dirl.models.backbones.llada2 import LLaDA2MoeConfig, LLaDA2MoeGate
from dirl.models.families.llada2 import LLaDA2Family
from dirl.models.families.weights import empty_backbone, weight_shapes


class TinyLLaDA2(TinyModel):
    """With biases that decide which experts are chosen, as trained ones do."""

    def __init__(self, block_size: int = 4, tied: bool = False) -> None:
        super().__init__(block_size, tied)
        self.family = LLaDA2Family()
        self.shape["num_hidden_layers"] = 3

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        backbone = super().build(config)
        generator = torch.Generator().manual_seed(1)
        for name, buffer in backbone.named_buffers():
            if name.endswith("expert_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
        return backbone


def sizes_of(config: LLaDA2MoeConfig) -> Sizes:
    theta = config.rope_parameters["rope_theta"]
    routing = config.num_experts, config.num_experts_per_tok, config.n_group, config.topk_group
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    scale = config.routed_scaling_factor
    return Sizes(config.num_hidden_layers, *heads, config.first_k_dense_replace, *routing, scale, theta, 1e-6)


def weights_of(backbone: PreTrainedModel) -> dict[str, Tensor]:
    return dict(LLaDA2Family().weights(backbone))


@pytest.fixture
def held_to_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the import hook: layers are compiled, and the compiler follows no check."""
    for name in ("Attention", "Gate", "Experts", "DecoderLayer", "Model", "ModelLM"):
        kind = getattr(llada2, f"LLaDA2Moe{name}")
        monkeypatch.setattr(kind, "forward", jaxtyped(kind.forward, typechecker=check))
    monkeypatch.setattr(LLaDA2MoeGate, "choose", jaxtyped(LLaDA2MoeGate.choose, typechecker=check))


@pytest.mark.usefixtures("held_to_shapes")
def test_its_logits_are_those_of_the_published_equations() -> None:
    backbone, _ = TinyLLaDA2().make()
    ids = torch.tensor([[1, 5, 3, 0, 2, 2, 6, 4, 11, 3, 11, 11]])
    mask = block_causal_mask(12, 4)
    with torch.no_grad():
        found = hf_logits(backbone, "eager")(ids, mask, torch.arange(12)[None])[0]
    wanted = llada2_logits(weights_of(backbone), sizes_of(backbone.config), ids[0].tolist(), mask)
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=2e-5)
    unbiased = {n: torch.zeros_like(v) if "expert_bias" in n else v for n, v in weights_of(backbone).items()}
    other = llada2_logits(unbiased, sizes_of(backbone.config), ids[0].tolist(), mask)
    assert (wanted - other).abs().max() > 0.1, "the biases of this model decide"


@pytest.mark.usefixtures("held_to_shapes")
def test_experts_are_chosen_with_the_bias_and_weighed_without_it() -> None:
    config = LLaDA2MoeConfig(hidden_size=8, num_experts=16, n_group=4, topk_group=2, num_experts_per_tok=3)
    gate, generator = LLaDA2MoeGate(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.weight.copy_(torch.randn(16, 8, generator=generator))
        gate.expert_bias.copy_(torch.randn(16, generator=generator) - 2)  # below zero, as no score is
    tokens = torch.randn(50, 8, generator=generator)
    index, weights = gate(tokens)
    scores = (tokens.double() @ gate.weight.detach().double().T).sigmoid()
    for n in range(50):
        wanted = route(scores[n], gate.expert_bias.double(), sizes_of(config))
        assert dict(zip(index[n].tolist(), weights[n].tolist(), strict=True)) == pytest.approx(wanted, abs=1e-6)
    assert weights.sum(-1).tolist() == pytest.approx([2.5] * 50)


def test_the_router_computes_in_fp32_under_autocast() -> None:
    gate, tokens = LLaDA2MoeGate(LLaDA2MoeConfig(hidden_size=8)), torch.randn(20, 8)
    torch.nn.init.normal_(gate.weight)
    plain = gate(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gate(tokens)
    assert torch.equal(plain[0], cast[0]) and torch.equal(plain[1], cast[1]) and cast[1].dtype == torch.float32


@pytest.mark.usefixtures("held_to_shapes")
def test_trainer_and_engine_give_its_tokens_the_same_log_probabilities() -> None:
    source = TinyLLaDA2()
    assert_engine_and_trainer_agree(source)


# --------------------------------------------------------------------------------------------------------- files


def test_an_export_has_the_names_of_published_checkpoints_and_keeps_the_biases_in_fp32(tmp_path: Path) -> None:
    source = TinyLLaDA2()
    description = source.describe()
    backbone, family = source.build(description.config), LLaDA2Family()
    shapes = weight_shapes(family, backbone)
    export_model(tmp_path, description, family.weights(backbone), shapes, "bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == shapes.keys() == PUBLISHED
    own = weights_of(backbone)
    for name, value in stored.items():
        wanted = own[name] if name.endswith("expert_bias") else own[name].bfloat16()
        assert value.dtype == wanted.dtype and torch.equal(value, wanted), name
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("llada2_moe", ["LLaDA2MoeModelLM"])
    assert (values["rope_theta"], values["partial_rotary_factor"]) == (10000, 0.5)
    assert "auto_map" not in values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_saved_is_read_whole_and_tensor_by_tensor_with_the_same_bits(dtype: str, tmp_path: Path) -> None:
    source = TinyLLaDA2()
    description = source.describe()
    backbone = source.build(description.config)
    save_model(tmp_path, backbone, description.tokenizer)
    again = PretrainedModel(str(tmp_path), dtype=dtype)
    config = again.describe().config
    files = again.weight_files(config)
    by_tensor = empty_backbone(LLaDA2Family(), config, getattr(torch, dtype))
    files.fill(by_tensor)
    for made in (again.build(config), by_tensor):
        found = made.state_dict()
        assert found.keys() == backbone.state_dict().keys()
        for name, value in backbone.state_dict().items():
            wanted = value if name.endswith("expert_bias") else value.to(getattr(torch, dtype))
            assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted), name


def layer(n: int) -> set[str]:
    attention = {
        f"attention.{part}.weight" for part in ("query_key_value", "query_layernorm", "key_layernorm", "dense")
    }
    parts = attention | {"input_layernorm.weight", "post_attention_layernorm.weight"}
    names = ("gate_proj", "up_proj", "down_proj")
    owners = ["mlp"] if n == 0 else ["mlp.shared_experts", *(f"mlp.experts.{e}" for e in range(8))]
    parts |= {f"{owner}.{name}.weight" for owner in owners for name in names}
    parts |= {"mlp.gate.weight", "mlp.gate.expert_bias"} if n else set()
    return {f"model.layers.{n}.{part}" for part in parts}


PUBLISHED = {"model.word_embeddings.weight", "model.norm.weight", "lm_head.weight"} | layer(0) | layer(1) | layer(2)


# -------------------------------------------------------------------------------------------------------- config


def published(**changes: object) -> LLaDA2MoeConfig:
    """What config.json of LLaDA2.0-mini says, or a part of it."""
    values = {"use_qk_norm": True, "use_bias": False, "sliding_window": 4096, "use_sliding_window": False}
    return LLaDA2MoeConfig(**{**values, "rope_theta": 600_000, "rope_scaling": None, "rotary_dim": 64, **changes})


def test_a_published_config_may_name_a_window_that_it_does_not_use() -> None:
    LLaDA2Family().check(published(), "mini")
    assert published().rope_parameters["rope_theta"] == 600_000
    assert LLaDA2Family().shape(published()) == LLaDA2Family.named_shapes["llada2.0-mini"]
    with pytest.raises(ValueError, match=r"model 'mini': use_sliding_window=True in its config, but LLaDA2.0 is built"):
        LLaDA2Family().check(published(use_sliding_window=True), "mini")


def test_experts_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8 of 250 experts cannot be chosen from 4 of 8 groups"):
        LLaDA2Family().check(published(num_experts=250), "mini")


def test_mini_has_16b_parameters_of_which_a_token_meets_1_4b() -> None:
    shape = LLaDA2Family.named_shapes["llada2.0-mini"]
    assert shape.parameters == pytest.approx(16.26e9, rel=0.01)
    assert shape.multiplied_weights + 2 * shape.embedding_parameters == pytest.approx(1.44e9, rel=0.05)


def test_a_shape_counts_the_parameters_of_the_model() -> None:
    backbone, _ = TinyLLaDA2().make()
    shape = LLaDA2Family().shape(backbone.config)
    assert shape.parameters == sum(p.numel() for p in backbone.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in backbone.model.layers[1].parameters())
