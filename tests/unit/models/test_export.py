"""Exported folders: what is in them, who reads them, how they take the place of older ones, what is not written."""

import json
import os
import signal
import stat
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.models.test_source import (
    assert_equal_weights,
    config_of,
    edit_json,
    new_model,
    official_sdar_folder,
    qwen_folder,
)
from torch import Tensor
from transformers import PreTrainedModel

from dirl.attention import visible
from dirl.batches import Layout
from dirl.checkpoints.reading import Contents
from dirl.models import ModelDescription, NewModel, PretrainedModel, export_model, folder, save_model
from dirl.models.checkpoint_weights import FILES, packed, unpacked
from dirl.models.families.weights import empty_backbone, weight_shapes
from dirl.models.folder import check_replaceable, exchange, replace_folder
from dirl.models.model_files import model_files
from dirl.models.weight_writer import write_weights

BLOCK = 4


def exported(path: Path, source: NewModel | PretrainedModel, **options: Any) -> PreTrainedModel:
    description = source.describe()
    backbone = source.build(description.config)
    export(path, description, backbone, **options)
    return backbone


def export(path: Path, description: ModelDescription, backbone: PreTrainedModel, **options: Any) -> None:
    shapes = weight_shapes(description.family, backbone)
    export_model(path, description, description.family.weights(backbone), shapes, **options)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# ------------------------------------------------------------------------------------------- who reads a folder

PLAIN = Path(__file__).parents[2] / "plain_transformers.py"
OTHER = os.environ.get("DIRL_TRANSFORMERS_4")
"""A Python that has transformers 4.57 and torch."""


@torch.no_grad()
def block_causal_logits(backbone: PreTrainedModel, ids: Tensor) -> Tensor:
    """This package's own forward under the mask predicate."""
    positions = torch.arange(len(ids))
    zero = torch.zeros_like(positions)
    layout = Layout(zero, zero, positions // BLOCK, zero)
    mask = visible(layout[:, None], layout[None, :])[None, None]
    output = backbone.eval().model(
        input_ids=ids[None], position_ids=positions[None], attention_mask=mask, use_cache=False
    )
    return backbone.lm_head(output.last_hidden_state[0])


@pytest.mark.parametrize(
    "python",
    [
        sys.executable,
        pytest.param(OTHER, marks=pytest.mark.skipif(OTHER is None, reason="DIRL_TRANSFORMERS_4 names no Python")),
    ],
    ids=["transformers here", "transformers 4.57"],
)
def test_plain_transformers_reads_a_folder_and_computes_what_this_package_does(python: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 10, (18,))
    qwen_folder(tmp_path / "qwen", moe=True)
    theta = {"rope_theta": 1_000_000.0, "initializer_range": 0.3}
    sources = {
        "dense": (new_model(block_size=BLOCK, tie_word_embeddings=False, **theta), "sdpa"),
        "tied": (new_model(block_size=BLOCK, stop_tokens=["="], **theta), "eager"),
        "experts": (PretrainedModel(str(tmp_path / "qwen"), block_size=BLOCK), "eager"),
    }
    cases, expected = {}, {}
    for name, (source, attention) in sources.items():
        backbone = exported(tmp_path / name, source)
        expected[name] = block_causal_logits(backbone, ids)
        text = "1+2=<|im_end|>"
        cases[name] = {"folder": str(tmp_path / name), "ids": ids, "text": text, "attention": attention}
    torch.save(cases, tmp_path / "in.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [python, str(PLAIN), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, seen in torch.load(tmp_path / "out.pt").items():
        description = PretrainedModel(str(tmp_path / name)).describe()
        tokenizer, spec = description.tokenizer, description.spec
        assert seen["class"] == ("SDARMoeForCausalLM" if name == "experts" else "SDARForCausalLM")
        assert seen["tokens"] == tokenizer("1+2=<|im_end|>", add_special_tokens=False)["input_ids"]
        assert seen["text"] == "1+2=<|im_end|>"
        assert seen["special"] == [spec.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
        assert seen["chat"] == "<|user|>1+2=<|im_end|><|assistant|>"
        assert seen["generation"] == list(spec.stop_token_ids)
        assert expected[name].std() > 0.2, "the model should not be flat"
        for way in ("whole", "padded", "cached"):
            # fp32 logits of up to 10: sums in another order
            torch.testing.assert_close(seen[way], expected[name], rtol=0, atol=1e-4, msg=f"{name} {way}")


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}])
def test_config_values_stand_under_the_names_of_older_and_newer_readers(scaling: dict, tmp_path: Path) -> None:
    qwen_folder(tmp_path / "old", rope_parameters={"rope_type": "default", "rope_theta": 5e6} | scaling)
    exported(tmp_path / "new", PretrainedModel(str(tmp_path / "old"), block_size=BLOCK), dtype="bfloat16")
    saved = config_of(tmp_path / "new")
    assert (saved["rope_theta"], saved["rope_parameters"]["rope_theta"]) == (5e6, 5e6)
    assert saved.get("rope_scaling") == (scaling or None)
    assert (saved["dtype"], saved["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert (saved["model_type"], saved["architectures"], saved["block_size"]) == ("sdar", ["SDARForCausalLM"], BLOCK)
    again = PretrainedModel(str(tmp_path / "new")).describe().config
    assert again.rope_parameters == {"rope_type": "default", "rope_theta": 5e6} | scaling
    tokenizer = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast", "4.57 does not know TokenizersBackend"
    assert "extra_special_tokens" not in tokenizer, "4.57 stops at a list there"
    assert tokenizer["additional_special_tokens"]


def test_older_names_of_a_config_value_are_written_too(tmp_path: Path) -> None:
    qwen_folder(tmp_path / "old", moe=True)
    exported(tmp_path / "new", PretrainedModel(str(tmp_path / "old"), block_size=BLOCK))
    saved = config_of(tmp_path / "new")
    assert (saved["num_experts"], saved["num_local_experts"]) == (4, 4), "4.57 would take 128 without a word"
    assert (saved["model_type"], saved["architectures"]) == ("sdar_moe", ["SDARMoeForCausalLM"])


def test_an_export_of_an_export_is_the_same_to_the_byte(tmp_path: Path) -> None:
    exported(tmp_path / "one", new_model(block_size=BLOCK, dtype="bfloat16", stop_tokens=["="]))
    exported(tmp_path / "two", PretrainedModel(str(tmp_path / "one")))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_stop_tokens_named_for_training_are_those_of_the_exported_model(tmp_path: Path) -> None:
    source = new_model(block_size=BLOCK, stop_tokens=["=", "+"])
    exported(tmp_path / "model", source)
    spec = source.describe().spec
    assert len(spec.stop_token_ids) == 4
    assert PretrainedModel(str(tmp_path / "model")).describe().spec == spec
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(spec.stop_token_ids)


def test_code_and_generation_config_of_the_source_go_along_unread(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    official_sdar_folder(old)
    (old / "modeling_sdar.py").write_text("from .rotary import Rotary\nraise RuntimeError('remote code was run')\n")
    (old / "rotary.py").write_text("from .rotary import Rotary  # of itself\n")
    (old / "unrelated.py").write_text("")
    published = '{"eos_token_id": 3, "temperature": 0.6, "a_new_option": [1, 2]}'
    (old / "generation_config.json").write_text(published)
    auto_map = config_of(old)["auto_map"]
    exported(new, PretrainedModel(str(old)))
    assert config_of(new)["auto_map"] == auto_map
    for name in ("configuration_sdar.py", "modeling_sdar.py", "rotary.py"):
        assert (new / name).read_bytes() == (old / name).read_bytes()
    assert not (new / "unrelated.py").exists()
    stops = list(PretrainedModel(str(old)).describe().spec.stop_token_ids)
    generation = json.loads((new / "generation_config.json").read_text())
    assert generation == json.loads(published) | {"eos_token_id": [3, *stops]}
    assert PretrainedModel(str(new)).describe().spec == PretrainedModel(str(old)).describe().spec


def test_any_file_beside_the_weights_goes_through_a_checkpoint(tmp_path: Path) -> None:
    """An empty one too: torch.load refuses empty bytes."""
    files = {"empty.py": b"", "sub/binary.model": bytes(range(256)), "text.json": "½\n".encode()}
    torch.save({"dirl": {FILES: packed(files)}}, tmp_path / "checkpoint.ckpt")
    contents_ = Contents(tmp_path, torch.load(tmp_path / "checkpoint.ckpt", weights_only=True), {})
    with unpacked(contents_) as place:
        assert contents(place) == files
    assert not place.exists()


def test_a_source_whose_code_is_missing_gets_the_code_that_every_export_has(tmp_path: Path) -> None:
    official_sdar_folder(tmp_path / "old")
    for file in (tmp_path / "old").glob("*.py"):
        file.unlink()
    exported(tmp_path / "new", PretrainedModel(str(tmp_path / "old")))
    saved = config_of(tmp_path / "new")["auto_map"]
    assert saved["AutoModelForCausalLM"] == "modeling_sdar.SDARForCausalLM"
    assert {target.split(".")[0] + ".py" for target in saved.values()} <= set(contents(tmp_path / "new"))


# --------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("stored", "option", "expected"),
    [
        ("bfloat16", "source", torch.bfloat16),
        ("float32", "source", torch.float32),
        ("bfloat16", "float32", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
    ],
)
def test_weights_are_stored_as_the_source_had_them_or_as_one_says(
    stored: str, option: Any, expected: torch.dtype, tmp_path: Path
) -> None:
    exported(tmp_path / "old", new_model(dtype=stored))
    training = PretrainedModel(str(tmp_path / "old"), dtype="float32")
    backbone = exported(tmp_path / "new", training, dtype=option)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {expected}
    for name, value in backbone.named_parameters():
        torch.testing.assert_close(weights[name], value.detach().to(expected), rtol=0, atol=0)
    assert config_of(tmp_path / "new")["dtype"] == str(expected).removeprefix("torch.")


def test_a_source_that_does_not_say_its_dtype_has_that_of_its_weights(tmp_path: Path) -> None:
    exported(tmp_path / "old", new_model(dtype="bfloat16"))
    edit_json(tmp_path / "old" / "config.json", lambda config: [config.pop("dtype"), config.pop("torch_dtype")])
    assert PretrainedModel(str(tmp_path / "old")).describe().config.dtype == torch.bfloat16


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_a_large_model_is_written_as_several_files_that_are_read_as_one(moe: bool, tmp_path: Path) -> None:
    qwen_folder(tmp_path / "old", moe)
    source = PretrainedModel(str(tmp_path / "old"), block_size=BLOCK)
    backbone = exported(tmp_path / "new", source, max_shard_size="4KB")
    files = sorted(tmp_path.glob("new/*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < 4000 + 2000 for file in files), "a header of names comes on top"
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    stored = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == stored
    assert any(".experts.3.up_proj.weight" in name for name in stored) == moe
    again = PretrainedModel(str(tmp_path / "new"))
    assert_equal_weights(again.build(again.describe().config), backbone)


def test_a_file_is_on_disk_before_the_weights_after_it_are_gathered(tmp_path: Path) -> None:
    shapes = {f"w{i}": torch.Size([1000]) for i in range(20)}
    alive: list[weakref.ref] = []
    most = 0

    def gathered() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for name in shapes:
            value = torch.ones(1000)
            alive.append(weakref.ref(value))
            most = max(most, sum(reference() is not None for reference in alive))
            yield name, value
            del value

    write_weights(tmp_path, gathered(), shapes, torch.float32, max_shard_size=3 * 4000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 7
    assert most <= 5, "three of a file, the one that comes, and one in the writer's hand"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 3.4e38])
def test_weights_that_are_not_finite_are_not_written(wrong: float, tmp_path: Path) -> None:
    source = new_model(block_size=BLOCK)
    exported(tmp_path / "model", source)
    before = contents(tmp_path / "model")
    description = source.describe()
    backbone = source.build(description.config)
    backbone.model.layers[1].mlp.up_proj.weight.data[2, 3] = wrong  # 3.4e38 has no bfloat16
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight holds numbers that are not finite \(1 of 384\)"):
        export(tmp_path / "model", description, backbone, dtype="bfloat16")
    assert contents(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ------------------------------------------------------------------------------------------- the folder itself


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    for umask in (0o022, 0o007, 0o077):
        before = os.umask(umask)
        try:
            exported(tmp_path / "model", new_model())
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~umask
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()}
        assert set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "renamed twice"])
def test_nothing_of_an_older_model_is_left(at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:
        monkeypatch.setattr(folder, "exchange", lambda one, other: False)
    source = new_model(block_size=BLOCK)
    exported(tmp_path / "fresh", source)
    exported(tmp_path / "model", source, max_shard_size="4KB")
    (tmp_path / "model" / "vocab.json").write_text("{}")
    (tmp_path / ".model.partial" / "x").mkdir(parents=True)  # of a writer that was killed
    exported(tmp_path / "model", source)
    assert contents(tmp_path / "model") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "model"]


def test_folders_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "two").exists() and (tmp_path / "two" / "one").exists()
    assert not exchange(tmp_path / "one", tmp_path / "nowhere")


@pytest.mark.parametrize(("at", "left"), [("writing", "old"), ("exchanged", "new")])
def test_a_killed_writer_leaves_the_old_model_or_the_new_one(at: str, left: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("old")

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write(new: Path) -> None:
        (new / "config.json").write_text("new")
        if at == "writing":
            die()
        (new / "model.safetensors").write_text("new")

    child = os.fork()
    if child == 0:
        folder._retire = die
        replace_folder(model, write)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert set(contents(model).values()) == {left.encode()}
    replace_folder(model, lambda new: [(new / "config.json").write_text("third")])
    assert contents(model) == {"config.json": b"third"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    save = new_model(block_size=BLOCK)
    exported(tmp_path / "model", save)
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk" / "config.json").is_file()


def test_what_is_no_model_is_neither_replaced_nor_lost(tmp_path: Path) -> None:
    model = tmp_path / "model"
    exported(model, new_model())
    check_replaceable(model)
    (model / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"model holds 'notes.txt', which is no part of a model: name another folder"):
        check_replaceable(model)
    exported(model, new_model())  # it came while the model was trained
    assert (tmp_path / "model.replaced-0" / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in contents(model)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: name a folder for the model"):
        check_replaceable(tmp_path / "file")
    with pytest.raises(
        ValueError, match=r"no model can be written to .*file/model: .*; name a folder that can be made"
    ):
        check_replaceable(tmp_path / "file" / "model")


def test_the_files_beside_the_weights_do_not_depend_on_what_became_of_the_model(tmp_path: Path) -> None:
    """FSDP2 makes other classes of its layers, and a build sets what it likes in a config of its own."""
    exported(tmp_path / "old", new_model(dtype="bfloat16"))
    source = PretrainedModel(str(tmp_path / "old"))
    description = source.describe()
    before = model_files(description.config, description.tokenizer, description.carried)
    source.build(description.config)
    empty_backbone(description.family, description.config, torch.float32)
    assert model_files(description.config, description.tokenizer, description.carried) == before
    assert set(before) >= {"config.json", "generation_config.json", "tokenizer.json", "modeling_sdar.py"}


def test_a_model_in_one_process_is_saved_in_its_own_dtype(tmp_path: Path) -> None:
    source = new_model(dtype="bfloat16")
    description = source.describe()
    save_model(tmp_path / "model", source.build(description.config), description.tokenizer)
    assert config_of(tmp_path / "model")["torch_dtype"] == "bfloat16"
