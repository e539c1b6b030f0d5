"""The page on extending: its family for a Mistral-shaped backbone trains, samples, plans and exports as written."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.integration.toy import rl_overlay, write_rl, write_sft
from tests.tiny import TinyModel
from tests.unit.models.test_parity import assert_engine_and_trainer_agree
from transformers import MistralForCausalLM

from dirl.cli.main import main
from dirl.cli.plan import read_plan
from dirl.models import ModelFamily, PretrainedModel
from dirl.models.families import families, registry

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelFamily]:
    """The block of the page, as a file that can be imported."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "(ModelFamily)" in block)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_models.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    families()
    monkeypatch.setattr(registry, "_BY_TYPE", dict(registry._BY_TYPE))
    import my_models

    yield my_models.BlockMistral()
    del sys.modules["my_models"]


def fit(root: Path, recipe: str, data: Path, *more: object) -> Path:
    args = ["fit", "--config", CONFIGS / "debug" / f"{recipe}.yaml", *more, f"--data.init_args.train={data}"]
    args += [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"]
    main([*map(str, args), "--model.init_args.source.init_args.family=my_models.BlockMistral"])
    return root


def test_it_is_trained_sampled_and_exported_in_both_stages(family: ModelFamily, tmp_path: Path) -> None:
    sft = fit(tmp_path / "sft", "sft", write_sft(tmp_path / "sft.jsonl"), "--trainer.max_steps=2")
    values = json.loads((sft / "model" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("block_mistral", ["BlockMistralForCausalLM"])
    assert "auto_map" not in values and not list((sft / "model").glob("*.py"))
    overlay = rl_overlay(tmp_path / "overlay.yaml")
    fit(tmp_path / "rl", "rl", write_rl(tmp_path / "rl.jsonl"), "--config", overlay, "--trainer.max_epochs=1")
    source = PretrainedModel(str(tmp_path / "rl" / "model"), family=family)
    backbone = source.build(source.describe().config)
    assert isinstance(backbone, MistralForCausalLM) and source.describe().spec.block_size == 4
    assert not any("q_norm" in name for name, _ in backbone.named_parameters())
    output = tmp_path / "again"
    last = max((tmp_path / "rl").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    main(["export", f"--ckpt_path={last}", f"--output={output}", "--family=my_models.BlockMistral"])
    again = PretrainedModel(str(output), family=family)
    made = again.build(again.describe().config).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in backbone.state_dict().items())


def test_trainer_and_engine_give_its_tokens_the_same_log_probabilities(family: ModelFamily) -> None:
    source = TinyModel(4)
    source.family = family
    assert_engine_and_trainer_agree(source)


def test_its_plan_counts_its_parameters(family: ModelFamily, tmp_path: Path) -> None:
    source = TinyModel(4)
    source.family = family
    backbone, _ = source.make()
    assert family.shape(backbone.config).parameters == sum(p.numel() for p in backbone.parameters())
    args = ["--config", str(CONFIGS / "debug" / "sft.yaml"), "--memory=8GB", "--data.init_args.train=none.jsonl"]
    plain = read_plan(args).settings.shape
    mistral = read_plan([*args, "--model.init_args.source.init_args.family=my_models.BlockMistral"]).settings.shape
    assert mistral == dataclasses.replace(plain, head_norms=False)
