"""Model folders: what is saved is loaded, official SDAR and plain Qwen3 load too, and what cannot serve is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.reference import Token, dense_mask
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from dirl.attention.backend import Backend
from dirl.batches import IGNORE, PackedBatch
from dirl.models import BlockDiffusionLM, NewModel, PretrainedModel, family_of, register_models, save_model
from dirl.models.families.qwen3_moe import SDARMoeConfig, SDARMoeForCausalLM
from dirl.models.special_tokens import unknown_ids
from dirl.models.tokenizer import new_tokenizer
from dirl.types import DecodingParams, ModelSpec

ALPHABET = "0123456789+= "
SHAPE = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)


def new_model(**settings: Any) -> NewModel:
    return NewModel(alphabet=ALPHABET, **(SHAPE | settings))


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def assert_equal_weights(model: nn.Module, expected: nn.Module) -> None:
    own, wanted = model.state_dict(), expected.state_dict()
    assert own.keys() == wanted.keys()
    for name, value in wanted.items():
        assert own[name].dtype == value.dtype and torch.equal(own[name], value), name


# ----------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_loaded_as_it_was(tied: bool, tmp_path: Path) -> None:
    source = new_model(block_size=8, tie_word_embeddings=tied, rope_theta=5000.0, seed=3)
    description = source.describe()
    backbone = source.build(description.config)
    save_model(tmp_path, backbone, description.tokenizer)
    assert (tmp_path / "model.safetensors").is_file()
    saved = config_of(tmp_path)
    assert (saved["model_type"], saved["architectures"]) == ("sdar", ["SDARForCausalLM"])
    assert (saved["block_size"], saved["mask_token_id"]) == (8, description.spec.mask_token_id)
    again = PretrainedModel(str(tmp_path))
    loaded = again.describe()
    assert loaded.spec == description.spec
    assert_equal_weights(again.build(loaded.config), backbone)
    assert loaded.tokenizer.get_vocab() == description.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == description.tokenizer.chat_template
    assert loaded.config.rope_parameters["rope_theta"] == 5000.0


def test_gathered_weights_are_saved_in_place_of_the_models_own(tmp_path: Path) -> None:
    source = new_model(tie_word_embeddings=False)
    description = source.describe()
    trained = new_model(tie_word_embeddings=False, seed=9).build(description.config)
    save_model(tmp_path, source.build(description.config), description.tokenizer, dict(trained.state_dict()))
    assert_equal_weights(PretrainedModel(str(tmp_path)).build(description.config), trained)


def test_new_weights_follow_the_seed_alone() -> None:
    config = new_model().describe().config
    torch.manual_seed(0)
    first = new_model(seed=5).build(config)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert_equal_weights(new_model(seed=5).build(config), first)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state is left alone"
    other = new_model(seed=6).build(config)
    assert not torch.equal(other.model.embed_tokens.weight, first.model.embed_tokens.weight)


def test_weights_can_be_loaded_in_another_precision(tmp_path: Path) -> None:
    source = new_model()
    description = source.describe()
    save_model(tmp_path, source.build(description.config), description.tokenizer)
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        loading = PretrainedModel(str(tmp_path), dtype=dtype)
        assert {p.dtype for p in loading.build(loading.describe().config).parameters()} == {expected}


# --------------------------------------------------------------------------------------- models of other makes


def qwen_folder(folder: Path, moe: bool = False, **changes: Any) -> PreTrainedModel:
    """A plain Qwen3 of transformers, with our tokenizer."""
    tokenizer = new_tokenizer(ALPHABET)
    torch.manual_seed(0)
    own = dict(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, initializer_range=0.3)
    shape = SHAPE | own | changes
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**EXPERTS, **shape)) if moe else Qwen3ForCausalLM(Qwen3Config(**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def official_sdar_folder(folder: Path) -> PreTrainedModel:
    """As SDAR is published: remote code, `rope_theta` alone, the mask token in the vocabulary but not declared."""
    model = qwen_folder(folder)

    def as_published(config: dict) -> None:
        for name in ("rope_parameters", "layer_types", "dtype", "transformers_version"):
            config.pop(name, None)
        config |= {
            "model_type": "sdar",
            "architectures": ["SDARForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_sdar.SDARConfig",
                "AutoModel": "modeling_sdar.SDARModel",
                "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
            },
            "block_size": 4,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "torch_dtype": "float32",
            "fuse_cross_entropy": True,
        }

    edit_json(folder / "config.json", as_published)
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("mask_token"))
    for name in ("configuration_sdar.py", "modeling_sdar.py"):
        (folder / name).write_text("raise RuntimeError('remote code was run')\n")
    return model


def test_the_official_sdar_config_loads_without_remote_code(tmp_path: Path) -> None:
    published = official_sdar_folder(tmp_path)
    source = PretrainedModel(str(tmp_path))
    description = source.describe()
    assert description.tokenizer.mask_token is None
    vocab = new_tokenizer(ALPHABET).get_vocab()
    end, pad = vocab["<|im_end|>"], vocab["<|endoftext|>"]
    assert description.spec == ModelSpec(4, vocab["<|MASK|>"], (end, pad), pad, len(vocab))
    model = source.build(description.config)
    assert type(model).__module__ == "dirl.models.families.qwen3"
    assert_equal_weights(model, published)
    assert model.config.rope_parameters["rope_theta"] == 1000000
    frequencies = 1000000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, frequencies)


@pytest.mark.parametrize("moe", [False, True])
def test_a_plain_qwen3_needs_a_block_size_and_keeps_it_when_saved(moe: bool, tmp_path: Path) -> None:
    published = qwen_folder(tmp_path / "old", moe)
    with pytest.raises(ValueError, match="block_size: the model's config has none; set block_size"):
        PretrainedModel(str(tmp_path / "old")).describe()
    source = PretrainedModel(str(tmp_path / "old"), block_size=2)
    description = source.describe()
    assert description.spec.block_size == 2
    model = source.build(description.config)
    assert_equal_weights(model, published)
    save_model(tmp_path / "new", model, description.tokenizer)
    again = PretrainedModel(str(tmp_path / "new"))
    assert again.describe().spec == description.spec
    assert_equal_weights(again.build(again.describe().config), published)
    assert config_of(tmp_path / "new")["model_type"] == ("sdar_moe" if moe else "sdar"), "it is no causal model now"


def test_a_published_sdar_moe_with_its_experts_one_by_one_loads_as_it_is(tmp_path: Path) -> None:
    register_models()
    spec_source = new_model(block_size=4)
    description = spec_source.describe()
    config = SDARMoeConfig(**(SHAPE | EXPERTS), vocab_size=description.config.vocab_size, block_size=4)
    config.architectures = ["SDARMoeForCausalLM"]
    model = SDARMoeForCausalLM(config)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    config.save_pretrained(tmp_path)
    description.tokenizer.save_pretrained(tmp_path)
    separate = {name: value.contiguous() for name, value in family_of(config).weights(model)}
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in separate
    save_file(separate, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = PretrainedModel(str(tmp_path), block_size=4)
    assert_equal_weights(source.build(source.describe().config), model)


def test_a_configured_mask_token_is_taken_and_saved(tmp_path: Path) -> None:
    qwen_folder(tmp_path / "old")
    source = PretrainedModel(str(tmp_path / "old"), block_size=4, mask_token="+", stop_tokens=["="])
    description = source.describe()
    plus, equals = ALPHABET.index("+"), ALPHABET.index("=")
    assert description.spec.mask_token_id == plus
    assert equals in description.spec.stop_token_ids[1:], "the end token of the template comes first"
    save_model(tmp_path / "new", source.build(description.config), description.tokenizer)
    assert PretrainedModel(str(tmp_path / "new")).describe().spec.mask_token_id == plus


# -------------------------------------------------------------------------------------------------- refusals


def saved_folder(folder: Path) -> Path:
    source = new_model(block_size=4)
    description = source.describe()
    save_model(folder, source.build(description.config), description.tokenizer)
    return folder


def test_a_block_size_that_disagrees_with_the_config_is_an_error(tmp_path: Path) -> None:
    saved_folder(tmp_path)
    assert PretrainedModel(str(tmp_path), block_size=4).describe().spec.block_size == 4
    with pytest.raises(ValueError, match="block_size=8 disagrees with the model config's block_size=4: leave it out"):
        PretrainedModel(str(tmp_path), block_size=8).describe()


@pytest.mark.parametrize("size", [0, -4, 2.5])
def test_a_block_size_that_is_no_positive_number_is_an_error(size: Any, tmp_path: Path) -> None:
    message = rf"block_size={size}: a block has a positive whole number of tokens"
    with pytest.raises(ValueError, match=message):
        new_model(block_size=size)
    qwen_folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        PretrainedModel(str(tmp_path), block_size=size).describe()
    edit_json(tmp_path / "config.json", lambda config: config.update(block_size=size))
    with pytest.raises(ValueError, match=message):
        PretrainedModel(str(tmp_path)).describe()


def test_a_model_of_another_architecture_is_an_error(tmp_path: Path) -> None:
    new_tokenizer(ALPHABET).save_pretrained(tmp_path)
    Gemma3TextConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='gemma3_text'; supported are Dream, block_llama, llada2_moe"):
        PretrainedModel(str(tmp_path), block_size=4).describe()


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere", "runs/nowhere/model"])
def test_a_missing_folder_is_an_error_without_asking_the_hub(path: str) -> None:
    with pytest.raises(ValueError, match=rf"path='{path}': no such folder; train or download"):
        PretrainedModel(path).describe()


@pytest.mark.parametrize(("moe", "layers"), [(False, r"\[1\]"), (True, r"\[0, 1\]")])
def test_layers_with_a_sliding_window_are_an_error(moe: bool, layers: str, tmp_path: Path) -> None:
    window = dict(use_sliding_window=True, sliding_window=8) | ({} if moe else dict(max_window_layers=1))
    qwen_folder(tmp_path, moe, **window)
    with pytest.raises(ValueError, match=f"layers {layers} use sliding-window attention; set use_sliding"):
        PretrainedModel(str(tmp_path), block_size=4).describe()


def word_tokenizer(*words: str, template: bool = True) -> PreTrainedTokenizerFast:
    vocab = {word: index for index, word in enumerate((*words, "<|im_end|>", "<unk>"))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<|im_end|>"])
    chat = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}" if template else None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<unk>", chat_template=chat
    )


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (word_tokenizer("a", "b"), "has no mask token: none declared"),
        (word_tokenizer("a", "[MASK]", template=False), "has no chat template"),
    ],
)
def test_a_tokenizer_without_mask_token_or_chat_template_is_an_error(
    tokenizer: PreTrainedTokenizerFast, message: str, tmp_path: Path
) -> None:
    qwen_folder(tmp_path)
    for path in (*tmp_path.glob("tokenizer*"), *tmp_path.glob("*.jinja")):
        path.unlink()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        PretrainedModel(str(tmp_path), block_size=4).describe()


def test_a_mask_token_beyond_the_models_vocabulary_is_an_error(tmp_path: Path) -> None:
    vocab = new_tokenizer(ALPHABET).get_vocab()
    qwen_folder(tmp_path, vocab_size=vocab["<|MASK|>"])
    message = rf"mask_token_id={vocab['<|MASK|>']} does not fit the model's vocab_size={vocab['<|MASK|>']}"
    with pytest.raises(ValueError, match=message):
        PretrainedModel(str(tmp_path), block_size=4).describe()
    shutil.rmtree(tmp_path)
    qwen_folder(tmp_path, vocab_size=len(vocab) + 10)
    spec = PretrainedModel(str(tmp_path), block_size=4, mask_token=len(vocab) + 9).describe().spec
    assert spec.mask_token_id == len(vocab) + 9, "models may have more embeddings than their tokenizer has tokens"


@pytest.mark.parametrize("stop", [[], [5]])
def test_ids_that_the_tokenizer_has_no_token_for_are_unknown_but_for_named_stop_tokens(
    stop: list[int], tmp_path: Path
) -> None:
    """At the end, as where the vocabulary was padded, and wherever the tokenizer leaves out a number."""
    count = len(new_tokenizer(ALPHABET).get_vocab())
    qwen_folder(tmp_path, vocab_size=count + 8)
    stops = [count + i for i in stop]
    spec = PretrainedModel(str(tmp_path), block_size=4, stop_tokens=stops).describe().spec
    assert spec.vocab_size == count + 8
    assert spec.unknown_ids == tuple(i for i in range(count, count + 8) if i not in stops)
    gap = PretrainedModel(str(tmp_path), block_size=4).describe().tokenizer
    without = {token: index for token, index in gap.get_vocab().items() if index != 3}
    gap.get_vocab = lambda: without
    assert unknown_ids(gap, count + 1, (count,)) == (3,)


# ---------------------------------------------------------------------------------------------------- forward

# a group of two responses to a shared prompt of one block, each with a clean and a noised block, and another group
PLACES = [
    *[Token(0, 0, 0, 0)] * 2,
    *[Token(0, 1, 1, 0)] * 2,
    *[Token(0, 1, 1, 1)] * 2,
    *[Token(0, 2, 1, 0)] * 2,
    *[Token(0, 2, 1, 1)] * 2,
    *[Token(1, 0, 0, 0)] * 2,
    *[Token(1, 1, 1, 1)] * 2,
]


def packed(mask_token_id: int) -> PackedBatch:
    count = len(PLACES)
    places = torch.tensor(PLACES)
    noised = places[:, 3] > 0
    ids = torch.arange(count) % 13
    floats = {name: torch.zeros(count) for name in ("advantages", "behaviour_logprobs", "old_logprobs")}
    return PackedBatch(
        input_ids=ids.masked_fill(noised, mask_token_id),
        position_ids=places[:, 2] * 2 + torch.arange(count) % 2,
        **dict(zip(("group_ids", "branch_ids", "block_ids", "view_ids"), places.unbind(1), strict=True)),
        target_ids=torch.where(noised, (ids + 5) % 13, IGNORE),
        loss_weights=torch.ones(count),
        trajectory_ids=torch.zeros_like(ids),
        columns=floats,
    )


@pytest.mark.parametrize("attention", ["auto", "dense"])
@pytest.mark.parametrize("moe", [False, True])
@torch.no_grad()
def test_the_packed_forward_is_transformers_own_under_the_dense_mask(
    moe: bool, attention: Backend, tmp_path: Path
) -> None:
    published = qwen_folder(tmp_path, moe).eval()
    source = PretrainedModel(str(tmp_path), block_size=2)
    description = source.describe()
    batch = packed(description.spec.mask_token_id)
    model = BlockDiffusionLM(source.build(description.config).eval(), description.spec, attention)
    scores = model(batch, DecodingParams())

    mask = torch.zeros(len(PLACES), len(PLACES)).masked_fill(~dense_mask(PLACES), float("-inf"))[None, None]
    published.config._attn_implementation = "eager"
    logits = published(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=mask if moe else {"full_attention": mask},
    ).logits[0]
    logits[:, description.spec.mask_token_id] = float("-inf")
    scored = batch.target_ids != IGNORE
    expected = logits.log_softmax(-1)[scored].gather(-1, batch.target_ids[scored][:, None]).squeeze(-1)
    torch.testing.assert_close(scores.logprobs, expected, atol=1e-5, rtol=0)  # fp32
    assert len(expected) == 6 and expected.std() > 0.1, "the model should not be flat"


@pytest.mark.parametrize("beside", [{"alphabet": "01"}, {"alphabet": "01", "words": ["00"]}, {"vocab_size": 300}])
def test_a_tokenizer_of_another_model_stands_alone(beside: dict[str, Any], tmp_path: Path) -> None:
    new_model().describe().tokenizer.save_pretrained(tmp_path)
    NewModel(tokenizer=str(tmp_path), **SHAPE).describe()
    names = ", ".join(f"source.{name}" for name in beside)
    with pytest.raises(ValueError, match=rf"source.tokenizer='{tmp_path}' brings its own tokens: remove {names}$"):
        NewModel(tokenizer=str(tmp_path), **SHAPE, **beside)
