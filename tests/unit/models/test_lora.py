"""Adapters on a tiny model: hand-merged weights in trainer and engine, what learns, what is refused, folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="peft is not installed")

import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.packed import group_pieces
from tests.tiny import EXPERTS, SHAPE, TinyModel, prompt, sample_groups
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, PreTrainedModel

from dirl.batches import PackedBatch
from dirl.models import BlockDiffusionLM, ModelDescription, PretrainedModel, SDARMoeConfig, save_model
from dirl.models.adapter_files import named_adapters, write_adapter
from dirl.models.families import family_of
from dirl.models.families.low_rank import adapters_off, low_ranks
from dirl.models.families.weights import weight_shapes
from dirl.models.lora import LoRAConfig, add_adapters, with_adapters
from dirl.modules.layers import compile_layers
from dirl.packing.rows import pack
from dirl.types import DecodingParams

DECODING = DecodingParams(threshold=0.4, max_response_tokens=9)
CLOSE = 2e-5
"""W x + s B (A x) and (W + s B A) x are rounded at other places: fp32, two layers, log-probs of about 10."""
SOURCE = TinyModel(tied=False)


def adapted_backbone(config: LoRAConfig, source: TinyModel = SOURCE) -> tuple[PreTrainedModel, ModelDescription]:
    """With a B that is not zero, as after some training."""
    description = source.describe()
    backbone = source.build(description.config)
    add_adapters(backbone, description.family, config, source)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for low_rank in low_ranks(backbone).values():
            low_rank.up.normal_(std=0.3, generator=generator)
    return backbone, description


def merged_by_hand(backbone: PreTrainedModel, config: LoRAConfig) -> dict[str, Tensor]:
    """W + alpha / rank * B A, in double precision."""
    values = dict(backbone.named_parameters())
    found = {}
    for name, value in values.items():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer", "")
        found[plain] = value.detach().double()
        if plain != name:
            layer = name.removesuffix(".base_layer.weight")
            down, up = (values[f"{layer}.lora_{kind}.default.weight"].detach().double() for kind in "AB")
            found[plain] += config.alpha / config.rank * up @ down
    return {name: value.float() for name, value in found.items()}


def row(description: ModelDescription) -> PackedBatch:
    (group,) = sample_groups(SOURCE, [prompt(5)], 3, DECODING)
    (packed,) = pack(group_pieces(group, description.spec, [1.0] * 3, True), 9999)
    return packed


def logprobs(backbone: PreTrainedModel, description: ModelDescription) -> Tensor:
    model = BlockDiffusionLM(backbone, description.spec, "dense")
    return model(row(description), DECODING).logprobs


@pytest.mark.parametrize("targets", [None, ["q_proj", "mlp.down_proj"], ["layers.1.self_attn.v_proj"]])
def test_adapters_are_the_matrix_to_which_they_are_added(targets: list[str] | None) -> None:
    """In the trainer's forward, in what engines and exports get, and off in the base."""
    config = LoRAConfig(rank=3, alpha=7.0, targets=targets)
    backbone, description = adapted_backbone(config)
    wanted = merged_by_hand(backbone, config)
    weights = dict(description.family.weights(backbone))
    assert weights.keys() == wanted.keys() == weight_shapes(description.family, backbone).keys()
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-6)
    plain = SOURCE.build(description.config)
    base = logprobs(plain, description)
    with adapters_off(backbone):
        assert torch.equal(logprobs(backbone, description), base)
    ours = logprobs(backbone, description)
    plain.load_state_dict(wanted)
    torch.testing.assert_close(ours, logprobs(plain, description), rtol=0, atol=CLOSE)
    assert (ours - base).abs().max() > 100 * CLOSE


def test_the_engine_samples_with_the_log_probs_that_the_trainer_computes_with_adapters() -> None:
    from dirl.rollout import TorchEngine
    from dirl.types import GenerationRequest

    config = LoRAConfig(rank=3, alpha=7.0)
    backbone, description = adapted_backbone(config)
    engine = TorchEngine(max_batch_size=4)
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(description.family.weights(backbone, engine.dtype), 1)
    requests = [GenerationRequest("0", i, prompt(5), seed=i) for i in range(4)]
    group = sorted(engine.generate(requests, DECODING), key=lambda t: t.sample_index)
    (packed,) = pack(group_pieces(group, description.spec, [1.0] * 4, True), 9999)
    scores = BlockDiffusionLM(backbone, description.spec, "dense")(packed, DECODING)
    behaviour = packed.columns["behaviour_logprobs"][scores.positions]
    torch.testing.assert_close(scores.logprobs.detach(), behaviour, rtol=0, atol=CLOSE)


def test_compiled_layers_have_the_adapters_in_them_and_leave_them_out_where_they_are_off() -> None:
    def policy(backbone: PreTrainedModel) -> tuple[Tensor, Tensor]:
        score = logprobs(backbone, description)
        learning = [p for p in backbone.parameters() if p.requires_grad]
        return score.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(score.sum(), learning)])

    def reference(backbone: PreTrainedModel) -> Tensor:
        with adapters_off(backbone), torch.no_grad():
            return logprobs(backbone, description)

    torch._dynamo.reset()
    counters.clear()
    backbone, description = adapted_backbone(LoRAConfig(rank=3))
    wanted, base = policy(backbone), reference(backbone)
    compile_layers(backbone.model.layers, backend="aot_eager")
    for _ in range(2):  # off in between, and on again
        made = policy(backbone)
        torch.testing.assert_close(made[0], wanted[0], rtol=0, atol=1e-5)
        assert float((made[1] - wanted[1]).norm() / wanted[1].norm()) < 1e-5
        torch.testing.assert_close(reference(backbone), base, rtol=0, atol=1e-5)
    assert (wanted[0] - base).abs().max() > 0.1
    assert not counters["graph_break"]
    # The first layer's input needs no gradient, for the embedding is frozen; that of the others does; and the base.
    assert counters["stats"]["unique_graphs"] == 3


def test_gradients_are_of_adapters_alone() -> None:
    backbone, description = adapted_backbone(LoRAConfig(rank=3))
    logprobs(backbone, description).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        assert "lora_" not in name or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_merged_weight_is_rounded_once_and_adapters_are_fp32(dtype: torch.dtype) -> None:
    config = LoRAConfig(rank=2, targets=["q_proj"])
    description = SOURCE.describe()
    backbone = SOURCE.build(description.config).to(dtype)
    add_adapters(backbone, description.family, config, SOURCE)
    name, low_rank = next(iter(low_ranks(backbone).items()))
    low_rank.up.data.fill_(0.01)
    assert low_rank.up.dtype == low_rank.down.dtype == torch.float32
    matrix = backbone.get_parameter(name.replace(".weight", ".base_layer.weight"))
    wanted = matrix.float() + config.scaling * low_rank.up @ low_rank.down
    merged = dict(description.family.weights(backbone, torch.bfloat16))[name]
    assert torch.equal(merged, wanted.to(torch.bfloat16))
    assert dict(description.family.weights(backbone, torch.float32))[name].dtype == dtype, "no information is added"


def test_new_adapters_change_nothing_and_are_drawn_by_seed_and_name() -> None:
    description = SOURCE.describe()
    one, two = (SOURCE.build(description.config) for _ in range(2))
    add_adapters(one, description.family, LoRAConfig(rank=3, seed=1), SOURCE)
    add_adapters(two, description.family, LoRAConfig(rank=3, seed=1, targets=["v_proj"]), SOURCE)
    assert torch.equal(logprobs(one, description), logprobs(SOURCE.build(description.config), description))
    first, second = low_ranks(one), low_ranks(two)
    assert all(torch.equal(first[name].down, value.down) for name, value in second.items())
    other = with_adapters(LoRAConfig(rank=3, seed=2, targets=["v_proj"]), description, SOURCE)
    assert not any(torch.equal(second[name].down, value.down) for name, value in low_ranks(other).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "model.lora.rank=0: use at least 1"),
        ({"alpha": 0.0}, "model.lora.alpha=0.0: use a positive"),
        ({"targets": []}, r"model.lora.targets=\[\]: name at least one"),
        ({"targets": ["q_proj", "w1"]}, "'w1' matches nothing in the model; use some of down_proj, gate_proj"),
        ({"targets": ["lm_head"]}, "'lm_head' is no linear layer within the decoder layers"),
        ({"targets": ["input_layernorm"]}, "'input_layernorm' is no linear layer"),
        ({"adapter": "nowhere"}, "there is no adapter_config.json in it"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_weights_are_read(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_adapters(LoRAConfig(**options), SOURCE.describe(), SOURCE)


def moe() -> tuple[PreTrainedModel, SDARMoeConfig]:
    config = SDARMoeConfig(**SHAPE, **EXPERTS)
    torch.manual_seed(0)
    return family_of(config).build(config), config


def test_a_model_with_experts_is_adapted_at_its_linear_layers() -> None:
    backbone, config = moe()
    family, before = family_of(config), dict(family_of(config).weights(backbone))
    add_adapters(backbone, family, LoRAConfig(rank=2))
    assert {name.split(".")[-2] for name in low_ranks(backbone)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    after = dict(family.weights(backbone))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "B is zero"


@pytest.mark.parametrize("target", ["experts", "gate_up_proj", "mlp.experts.down_proj"])
def test_experts_in_one_tensor_are_refused_by_name(target: str) -> None:
    backbone, config = moe()
    with pytest.raises(ValueError, match=f"{target!r} is the experts of a layer, .*use some of k_proj, o_proj"):
        add_adapters(backbone, family_of(config), LoRAConfig(targets=[target]))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[PreTrainedModel, LoRAConfig, Path, Path]:
    """A base as a folder, an adapter of it, and the model that they are."""
    description = SOURCE.describe()
    save_model(tmp_path / "base", SOURCE.build(description.config), description.tokenizer)
    config = LoRAConfig(rank=3, alpha=7.0)
    backbone, _ = adapted_backbone(config)
    write_adapter(tmp_path / "adapter", named_adapters(backbone), config, str(tmp_path / "base"))
    return backbone, config, tmp_path / "base", tmp_path / "adapter"


def test_peft_and_transformers_load_the_adapter(folders: tuple[PreTrainedModel, LoRAConfig, Path, Path]) -> None:
    backbone, config, base, adapter = folders
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    by_transformers = AutoModelForCausalLM.from_pretrained(adapter)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.load_state_dict(merged_by_hand(backbone, config))
    ids = torch.arange(8)[None]
    wanted = plain(input_ids=ids).logits
    for model in (by_peft, by_transformers, by_peft.merge_and_unload()):
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=0, atol=1e-4)


def test_a_run_goes_on_from_an_adapter(folders: tuple[PreTrainedModel, LoRAConfig, Path, Path]) -> None:
    backbone, config, base, adapter = folders
    source = PretrainedModel(str(base))
    description = source.describe()
    again = with_adapters(replace(config, adapter=str(adapter)), description, source)
    for name, low_rank in low_ranks(again).items():
        assert torch.equal(low_rank.up, low_ranks(backbone)[name].up)
        assert torch.equal(low_rank.down, low_ranks(backbone)[name].down)


@pytest.mark.parametrize(
    ("changes", "written", "message"),
    [
        ({"rank": 4}, {}, "has rank 3 and alpha 7.0, the config rank 4 and alpha 7.0: set model.lora.rank"),
        ({"targets": ["q_proj"]}, {}, "is of other targets: it has .*, which model.lora.targets leave out"),
        ({}, {"base_model_name_or_path": "other/model"}, "is an adapter of another base: of 'other/model', the source"),
        ({}, {"peft_type": "IA3"}, "its peft_type is 'IA3'"),
        ({}, {"use_dora": True}, "its use_dora is True"),
        ({}, {"rank_pattern": {"q_proj": 4}}, "its rank_pattern is"),
    ],
)
def test_another_adapter_is_refused(
    changes: dict, written: dict, message: str, folders: tuple[PreTrainedModel, LoRAConfig, Path, Path]
) -> None:
    _, config, base, adapter = folders
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    source = PretrainedModel(str(base))
    with pytest.raises(ValueError, match=message):
        with_adapters(replace(config, adapter=str(adapter), **changes), source.describe(), source)


def test_an_adapter_of_a_base_of_other_sizes_is_refused(
    folders: tuple[PreTrainedModel, LoRAConfig, Path, Path],
) -> None:
    _, config, base, adapter = folders
    source = PretrainedModel(str(base))
    description = source.describe()
    description.config.intermediate_size += 8
    with pytest.raises(ValueError, match=r"is an adapter of another base: .*gate_proj is \[72, 32\] here and \[64,"):
        with_adapters(replace(config, adapter=str(adapter)), description, source)


def test_an_adapter_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    backbone, _ = adapted_backbone(LoRAConfig(rank=3))
    next(iter(low_ranks(backbone).values())).up.data[0] = float("nan")
    with pytest.raises(ValueError, match="lora_B"):
        write_adapter(tmp_path / "adapter", named_adapters(backbone), LoRAConfig(rank=3), "base")
    assert not (tmp_path / "adapter").exists()


def test_what_is_stored_is_fp32(folders: tuple[PreTrainedModel, LoRAConfig, Path, Path]) -> None:
    stored = load_file(folders[3] / "adapter_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
