"""Plain Qwen3 and Llama folders read as block-diffusion models: the mask's row, exports, generation, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.autoregressive import Kind, causal_folder, edit
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from dirl.batches import IGNORE
from dirl.diffusion.noise import NoiseConfig
from dirl.models import AutoregressiveModel, BlockDiffusionLM, PretrainedModel, save_model
from dirl.models.families.weights import empty_backbone
from dirl.modules import RLModule
from dirl.packing.pieces import Encoded, alone, conversation
from dirl.packing.rows import pack
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest

TOKENS = 14
"""Of the tokenizer without a mask token."""


def made(folder: Path, **options: Any) -> tuple[AutoregressiveModel, PreTrainedModel]:
    source = AutoregressiveModel(str(folder), **({"pad_vocabulary_to": 8} | options))
    return source, source.build(source.describe().config)


# ------------------------------------------------------------------------------------------------------- the row


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("free_rows", "rows"), [(0, 16), (3, 17)])
def test_the_mask_token_has_the_mean_of_the_rows_before_it_and_all_else_is_as_it_was(
    kind: Kind, tied: bool, free_rows: int, rows: int, tmp_path: Path
) -> None:
    """A padded vocabulary has a row for it; another grows to a multiple of 8."""
    before = causal_folder(tmp_path, kind, free_rows=free_rows, tie_word_embeddings=tied)
    source, after = made(tmp_path)
    spec = source.describe().spec
    assert (spec.block_size, spec.mask_token_id, spec.vocab_size) == (4, TOKENS, rows)
    assert spec.unknown_ids == tuple(range(TOKENS + 1, rows)), "no other row may be drawn"
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name, value in old.items():
        kept = new[name][:TOKENS] if name in ("model.embed_tokens.weight", "lm_head.weight") else new[name]
        assert torch.equal(kept, value[: len(kept)]), name
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert new[name].shape == (rows, 32)
        torch.testing.assert_close(new[name][TOKENS], old[name][:TOKENS].mean(0))
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    assert after.config.vocab_size == after.lm_head.out_features == after.model.embed_tokens.num_embeddings == rows


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_read_tensor_by_tensor_it_is_the_same_to_the_bit(kind: Kind, tied: bool, dtype: Any, tmp_path: Path) -> None:
    causal_folder(tmp_path, kind, tie_word_embeddings=tied)
    source, whole = made(tmp_path, dtype=dtype)
    description = source.describe()
    files = source.weight_files(description.config)
    assert files is not None
    empty = empty_backbone(description.family, description.config, getattr(torch, dtype))
    files.fill(empty)
    empty.tie_weights()
    for name, value in whole.state_dict().items():
        assert torch.equal(empty.state_dict()[name], value), name


def test_reading_it_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    causal_folder(tmp_path)
    state = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    made(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_token_that_the_model_has_been_trained_with_may_be_the_mask_and_keeps_its_row(tmp_path: Path) -> None:
    before = causal_folder(tmp_path)
    source, after = made(tmp_path, mask_token="4")
    assert (source.describe().spec.mask_token_id, source.describe().spec.vocab_size) == (4, TOKENS)
    assert torch.equal(after.model.embed_tokens.weight, before.model.embed_tokens.weight)


# ---------------------------------------------------------------------------------------------- out and in again


@pytest.mark.parametrize(("kind", "exported"), [("qwen3", "sdar"), ("llama", "block_llama")])
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_is_read_back_and_generates(kind: Kind, exported: str, tied: bool, tmp_path: Path) -> None:
    causal_folder(tmp_path / "ar", kind, tie_word_embeddings=tied)
    source, backbone = made(tmp_path / "ar", block_size=2)
    description = source.describe()
    save_model(tmp_path / "out", backbone, description.tokenizer)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.model_type, config.block_size, config.mask_token_id) == (exported, 2, TOKENS)
    again = PretrainedModel(str(tmp_path / "out"))
    assert again.describe().spec == description.spec
    assert again.describe().tokenizer.mask_token == AutoTokenizer.from_pretrained(tmp_path / "out").mask_token
    loaded = again.build(again.describe().config)
    for name, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    engine = TorchEngine()
    engine.setup(config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(description.family.weights(loaded), 0)
    request = GenerationRequest("p", 0, (1, 2, 3), seed=1)
    (response,) = engine.generate([request], DecodingParams(max_response_tokens=12))
    response.check(description.spec)
    assert max(response.response_ids) < TOKENS, "neither the mask nor a row beside it is drawn"


def test_a_base_model_gets_a_chat_template_from_a_file(tmp_path: Path) -> None:
    causal_folder(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        made(tmp_path)
    (tmp_path / "mine.jinja").write_text(template)
    source, _ = made(tmp_path, chat_template=str(tmp_path / "mine.jinja"))
    assert source.describe().tokenizer.chat_template == template
    with pytest.raises(ValueError, match=r"source.chat_template='none.jinja': no such file; name a Jinja file"):
        made(tmp_path, chat_template="none.jinja")


# ------------------------------------------------------------------------------------- what blocks of one learn


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@torch.no_grad()
def test_blocks_of_one_are_scored_as_a_causal_model_scores_a_mask_behind_each_prefix(
    kind: Kind, tmp_path: Path
) -> None:
    """The chain rule: -log p of the response, each token once; clean tokens are what the causal model makes of them."""
    causal_folder(tmp_path, kind)
    source, backbone = made(tmp_path, block_size=1)
    spec, mask = source.describe().spec, TOKENS
    ids, trained = [0, 5, 1, 2, 6, 3, 9], [False] * 3 + [True] * 4
    piece, count = conversation(Encoded(ids, trained), spec, NoiseConfig(), np.random.default_rng(0))
    assert count == 4, "nothing is filled up"
    (row,) = pack([alone(piece)], 100)
    scored = row.target_ids != IGNORE
    assert row.target_ids[scored].tolist() == ids[3:] and row.loss_weights[scored].tolist() == [1.0] * 4
    found = BlockDiffusionLM(backbone.eval(), spec, "dense")(row, DecodingParams()).logprobs

    causal = type(causal_folder(tmp_path / "other", kind)).from_pretrained(tmp_path, attn_implementation="eager").eval()
    causal.resize_token_embeddings(spec.vocab_size)
    causal.load_state_dict(backbone.state_dict())
    expected = []
    for place in range(3, len(ids)):
        logits = causal(torch.tensor([[*ids[:place], mask]])).logits[0, -1]
        logits[mask:] = float("-inf")
        expected.append(logits.log_softmax(-1)[ids[place]])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)  # fp32
    assert found.std() > 0.1, "the model should not be flat"


# ------------------------------------------------------------------------------------------------------ refusals


def of_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            of_config(block_size=4),
            {},
            r"model '.*' \(model_type='qwen3', block_size=4\) is a block-diffusion model already: read it as dirl",
        ),
        (of_config(model_type="sdar"), {}, r"\(model_type='sdar'\) is a block-diffusion model already"),
        (of_config(model_type="gpt2"), {}, "model_type='gpt2'; supported are"),
        (of_config(auto_map={"AutoModel": "a.B"}), {}, r"auto_map=.* names code of its own, .* only a plain qwen3"),
        (
            of_config(architectures=["Qwen3ForSequenceClassification"]),
            {},
            "is no language model that predicts the next",
        ),
        (of_config(quantization_config={"quant_method": "awq"}), {}, "quantised weights cannot be trained"),
        (
            of_config(use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention"] * 2),
            {},
            "sliding-window",
        ),
        (of_config(vocab_size=12), {}, r"the tokenizer has token 13 .*, the model's vocab_size=12 ends before it"),
        (lambda folder: None, {"mask_token": ""}, "source.mask_token='': give the token a name"),
        (lambda folder: None, {"mask_token": "<|im_end|>"}, "is mask token and end token at once"),
        (lambda folder: None, {"block_size": 0}, "block_size=0: a block has a positive"),
        (lambda folder: None, {"pad_vocabulary_to": 0}, "source.pad_vocabulary_to=0"),
    ],
)
def test_what_is_not_fit_is_refused_before_weights_are_read(
    change: Callable[[Path], None], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    causal_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoregressiveModel(str(tmp_path), **options).describe()


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    causal_folder(tmp_path, free_rows=2)
    edit(tmp_path / "config.json", lambda config: config.update(vocab_size=TOKENS))
    source = AutoregressiveModel(str(tmp_path))
    description = source.describe()
    files = source.weight_files(description.config)
    assert files is not None
    with pytest.raises(ValueError, match=rf"has {TOKENS + 2} rows, the model's config says vocab_size={TOKENS}"):
        files.fill(empty_backbone(description.family, description.config, torch.float32))


@pytest.mark.parametrize(
    ("options", "said"), [({}, "block_size: the model's config has none"), ({"block_size": 4}, "no mask")]
)
def test_read_as_any_other_model_it_is_refused_with_the_way_that_there_is(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    causal_folder(tmp_path)
    with pytest.raises(ValueError, match=rf"{said}.*dirl\.models\.AutoregressiveModel as the source"):
        PretrainedModel(str(tmp_path), **options).describe()


def test_there_is_nothing_to_sample_from_it_yet(tmp_path: Path) -> None:
    source = AutoregressiveModel(str(tmp_path))
    with pytest.raises(ValueError, match="source=AutoregressiveModel: it has never filled in a mask"):
        RLModule(source)
    with pytest.raises(ValueError, match="reference=AutoregressiveModel: it has never filled in a mask"):
        RLModule(PretrainedModel(str(tmp_path)), reference=source)
