"""Whole runs with LoRA: resumed to the bit, on two processes as on one, exported both ways, the base as reference."""

from pathlib import Path

import pytest

pytest.importorskip("peft", reason="peft is not installed")

import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.integration.identity import checkpoint
from tests.integration.several_runs import fit_all
from tests.integration.test_resume import check_chain
from tests.integration.test_runs import CONFIGS, fit
from tests.integration.test_value_runs import model_folder
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft
from transformers import AutoModelForCausalLM

from dirl.cli.main import main

LOGGED = ("loss", "grad_norm", "reference_kl")


def source(path: object) -> str:
    return f"{{class_path: dirl.models.PretrainedModel, init_args: {{path: {path}}}}}"


def rl_args(folder: Path, tied: bool = True, stage: str = "rl") -> list[object]:
    """Two epochs of two steps in two passes each, with a KL term; several rows a step."""
    folder.mkdir(parents=True, exist_ok=True)
    overlay, data = rl_overlay(folder / "overlay.yaml"), write_rl(folder / "rl.jsonl")
    parts = ("debug/rl.yaml", overlay, "lora/all_linear.yaml")
    configs = [x for part in parts for x in ("--config", CONFIGS / part)]
    options = ["--data.passes=2", "--data.token_budget=200", "--objective.kl_coef=0.1", "--model.optimizer.lr=1e-3"]
    return [*configs, f"--model.source={source(model_folder(folder, tied))}", f"--data.train={data}", *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go, beside what it was made of."""
    folder = tmp_path_factory.mktemp("lora")
    return fit(folder / "whole", *rl_args(folder))


def test_rl_moves_adapters_and_not_the_base(whole: Path) -> None:
    assert max(metrics(whole, "train/reference_kl")[2:]) > 1e-5
    assert max(map(abs, metrics(whole, "train/mismatch_kl"))) < 1e-6, "the engine has what the trainer learns"
    state = torch.load(checkpoint(whole, 8), weights_only=True)
    base, exported = load_file(whole.parent / "model/model.safetensors"), load_file(whole / "model/model.safetensors")
    moved = {name for name, value in base.items() if not torch.equal(value, exported[name])}
    assert moved == {name for name in base if "_proj" in name}
    for name, value in base.items():
        kept = state["state_dict"].get(f"model.backbone.{name.replace('.weight', '.base_layer.weight')}")
        assert torch.equal(state["state_dict"][f"model.backbone.{name}"] if kept is None else kept, value)
    assert len(state["optimizer_states"][0]["state"]) == 2 * len(moved)


def test_a_run_is_resumed_to_the_bit(whole: Path) -> None:
    check_chain(whole, rl_args(whole.parent), [3], 8)


@pytest.mark.thorough
def test_the_reference_is_the_base(whole: Path) -> None:
    """A second model of the base gives the same numbers, to the bit."""
    base = source(whole.parent / "model")
    second = fit(whole.parent / "second", *rl_args(whole.parent), f"--model.reference={base}", "--trainer.max_epochs=1")
    for name in LOGGED:
        assert metrics(whole, f"train/{name}")[:4] == metrics(second, f"train/{name}")


def test_a_checkpoint_is_exported_merged(whole: Path) -> None:
    main(["export", f"--ckpt_path={checkpoint(whole, 8)}", f"--output={whole.parent / 'exported'}"])
    one, two = (load_file(root / "model.safetensors") for root in (whole / "model", whole.parent / "exported"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--model.lora.alpha=32",
            "lora: rank 32, alpha 64.0, targets all, this run has lora: rank 32, alpha 32.0",
        ),
        ("--model.lora.targets=[q_proj]", r"this run has lora: rank 32, alpha 64.0, targets \['q_proj'\]: resume with"),
        ("--model.lora=null", "this run has lora: null"),
    ],
)
def test_a_checkpoint_of_other_adapters_is_refused(option: str, message: str, whole: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(whole.parent / "other", *rl_args(whole.parent), option, f"--ckpt_path={checkpoint(whole, 3)}")


def test_the_adapter_of_sft_is_put_on_its_base_by_peft_and_gone_on_from(tmp_path: Path) -> None:
    base, data = model_folder(tmp_path), write_sft(tmp_path / "sft.jsonl")
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", CONFIGS / "lora" / "attention.yaml"]
    args += [f"--model.source={source(base)}", f"--data.train={data}", f"--data.val={data}", "--trainer.max_steps=4"]
    args += ["--model.optimizer.lr=1e-3", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=4"]
    merged = fit(tmp_path / "merged", *args)
    adapter = fit(tmp_path / "adapter", *args, "--export.form=adapter") / "model"
    plain = AutoModelForCausalLM.from_pretrained(base)
    put_on = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    for name, value in load_file(merged / "model" / "model.safetensors").items():
        torch.testing.assert_close(put_on[name], value, rtol=0, atol=1e-6)
    further = fit(tmp_path / "further", *args, f"--model.lora.adapter={adapter}")
    assert metrics(further, "val/nelbo_per_token")[0] < metrics(merged, "val/nelbo_per_token")[0]


def test_an_adapter_of_no_base_is_refused_before_training(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    args = ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.train={data}", "--export.form=adapter"]
    with pytest.raises(ValueError, match=r"export.form=adapter, and model.lora=null has none"):
        fit(tmp_path / "run", *args)
    with pytest.raises(ValueError, match=r"an adapter names its base, .* and model.source is NewModel"):
        fit(tmp_path / "run", *args, "--config", CONFIGS / "lora" / "attention.yaml")


def test_a_value_head_learns_beside_adapters(tmp_path: Path) -> None:
    value = tmp_path / "value.yaml"
    value.write_text(
        "objective:\n  class_path: dirl.objectives.TraceRL\n"
        "  init_args: {value: true, kl_coef: 0.01, normalization: sequence}\n"
        "model: {init_args: {value: {shared: true, optimizer: {lr: 1.0e-3}}}}\n"
    )
    root = fit(tmp_path / "run", *rl_args(tmp_path)[:-1], "--config", value, "--trainer.max_epochs=1")
    assert min(metrics(root, "train/value_grad_norm")) > 0 and min(metrics(root, "train/grad_norm")) > 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, two with DDP and FSDP2, and from the middle of the first rollout of the latter."""
    folder = tmp_path_factory.mktemp("two")
    own = [*rl_args(folder, tied=False), "--trainer.max_epochs=1"]
    fit(folder / "single", *own)
    fit_all(folder, {"ddp": ["ddp", *own], "fsdp": ["fsdp", *own]}, processes=2)
    written = checkpoint(folder / "fsdp", 2)
    fit_all(folder, {"resumed": ["fsdp", *own, f"--ckpt_path={written}"]}, processes=2)
    return folder


def assert_equal(one: Path, two: Path, close: float, weights: float) -> None:
    for name in LOGGED:
        first, second = metrics(one, f"train/{name}"), metrics(two, f"train/{name}")
        assert len(first) == len(second) == 4, name
        assert second == pytest.approx(first, rel=close, abs=close / 100), name
    exported = [load_file(root / "model" / "model.safetensors") for root in (one, two)]
    assert exported[0].keys() == exported[1].keys()
    for name, value in exported[0].items():
        torch.testing.assert_close(exported[1][name], value, rtol=0, atol=weights)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one(strategy: str, runs: Path) -> None:
    assert_equal(runs / "single", runs / strategy, 1e-3, 2e-4)


@pytest.mark.slow
@pytest.mark.thorough
def test_two_sharded_processes_in_bf16_equal_one(tmp_path: Path) -> None:
    """The base is rounded alike, sums are not."""
    own = [*rl_args(tmp_path, tied=False), "--trainer.max_epochs=1", "--trainer.precision=bf16-mixed"]
    fit(tmp_path / "single", *own)
    fit_all(tmp_path, {"fsdp": ["fsdp", *own]}, processes=2)
    assert_equal(tmp_path / "single", tmp_path / "fsdp", 0.05, 4e-3)


@pytest.mark.slow
def test_two_sharded_processes_resumed_in_mid_epoch_equal_one_go(runs: Path) -> None:
    one, two = (load_file(runs / name / "model" / "model.safetensors") for name in ("fsdp", "resumed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    main(["export", f"--ckpt_path={checkpoint(runs / 'fsdp', 4)}", f"--output={runs / 'exported'}"])
    three = load_file(runs / "exported" / "model.safetensors")
    assert all(torch.equal(value, three[name]) for name, value in one.items())
