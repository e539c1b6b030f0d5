"""Families of this package as a user runs them: SFT, RL with the torch engine, export; FSDP2 as one process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.one_run import run
from tests.integration.test_strategies import assert_equal_runs
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

from dirl.cli.main import main
from dirl.models import ModelFamily, NewModel, PretrainedModel, save_model
from dirl.models.families import BlockLlamaFamily, DreamReasonerFamily, LLaDA2Family

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = (LLaDA2Family, BlockLlamaFamily, DreamReasonerFamily)
SOURCE = "--model.init_args.source={class_path: dirl.models.PretrainedModel, init_args: {path: %s}}"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def model(folder: Path, family: type[ModelFamily]) -> Path:
    """With byte-level tokens, as the debug recipes have them; the names in its files are those of checkpoints."""
    source = NewModel(hidden_size=32, intermediate_size=64, head_dim=8, num_hidden_layers=2, family=family(), seed=0)
    description = source.describe()
    backbone = source.build(description.config)
    for name, buffer in backbone.named_buffers():
        if name.endswith("expert_bias"):
            buffer.copy_(torch.linspace(-0.1, 0.1, len(buffer)))
    save_model(folder, backbone, description.tokenizer)
    return folder


def fit(root: Path, recipe: str, data: Path, *more: object) -> Path:
    args = ["fit", "--config", CONFIGS / "debug" / f"{recipe}.yaml", *more, f"--data.init_args.train={data}", *QUIET]
    main([*map(str, args), f"--trainer.default_root_dir={root}"])
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", [LLaDA2Family, *(pytest.param(f, marks=pytest.mark.thorough) for f in FAMILIES[1:])])
def test_both_stages_train_it_and_export_the_names_that_they_read(family: type[ModelFamily], tmp_path: Path) -> None:
    first = model(tmp_path / "model", family)
    sft = fit(tmp_path / "sft", "sft", write_sft(tmp_path / "sft.jsonl"), SOURCE % first, "--trainer.max_steps=2")
    overlay = rl_overlay(tmp_path / "overlay.yaml")
    options = ["--config", overlay, SOURCE % (sft / "model"), "--trainer.max_epochs=1"]
    rl = fit(tmp_path / "rl", "rl", write_rl(tmp_path / "rl.jsonl"), *options)
    assert max(metrics(rl, "train/grad_norm")) > 0
    before, after = tensors(first), tensors(rl / "model")
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.equal(v, after[name]) for name, v in before.items() if name.endswith("expert_bias"))
    kinds = [json.loads((folder / "config.json").read_text())["model_type"] for folder in (first, rl / "model")]
    assert kinds[0] == kinds[1]
    last = max(rl.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    main(["export", f"--ckpt_path={last}", f"--output={tmp_path / 'again'}"])
    assert all(torch.equal(value, after[name]) for name, value in tensors(tmp_path / "again").items())
    PretrainedModel(str(last)).describe()


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_two_sharded_processes_that_read_it_tensor_by_tensor_equal_one(
    family: type[ModelFamily], tmp_path: Path
) -> None:
    first, data = model(tmp_path / "model", family), write_sft(tmp_path / "sft.jsonl")
    args = ["--config", CONFIGS / "debug" / "sft.yaml", SOURCE % first, f"--data.init_args.train={data}"]
    single, sharded = (run(tmp_path / name, name, *args, "--trainer.max_steps=3") for name in ("single", "fsdp"))
    assert_equal_runs(single, sharded)


@pytest.mark.thorough
def test_two_sharded_processes_of_rl_push_its_biases_too(tmp_path: Path) -> None:
    first, data = model(tmp_path / "model", LLaDA2Family), write_rl(tmp_path / "rl.jsonl")
    overlay = rl_overlay(tmp_path / "overlay.yaml")
    args = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, SOURCE % first]
    args += [f"--data.init_args.train={data}", "--objective.init_args.kl_coef=0.1", "--trainer.max_epochs=2"]
    single, sharded = (run(tmp_path / name, name, *args) for name in ("single", "fsdp"))
    assert_equal_runs(single, sharded)
