"""Whole runs with a value model: two processes equal one, and a resumed run the one in one go, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.identity import checkpoint
from tests.integration.several_runs import fit_all
from tests.integration.test_resume import check_chain
from tests.integration.test_runs import CONFIGS, fit
from tests.integration.toy import metrics, rl_overlay, write_rl

from dirl.models import NewModel, PretrainedModel, save_model
from dirl.modules import value as of_value

LOGGED = ("loss", "value_loss", "grad_norm", "value_grad_norm", "explained_variance", "value_lr")
KINDS = {
    "own": "{source: {class_path: dirl.models.PretrainedModel, init_args: {path: MODEL}}, LR}",
    "shared": "{shared: true, LR}",
}


def model_folder(folder: Path, tied: bool = True) -> Path:
    """Of the debug recipe's shape, with other weights than its own model has."""
    sizes = dict(block_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8)
    source = NewModel(**sizes, tie_word_embeddings=tied, seed=3)
    description = source.describe()
    save_model(folder / "model", source.build(description.config), description.tokenizer)
    return folder / "model"


def value_args(folder: Path, kind: str, tied: bool = True) -> list[object]:
    """Two epochs of two steps in two passes each; several rows a step, responses in several of them."""
    folder.mkdir(parents=True, exist_ok=True)
    overlay, data, model = (
        rl_overlay(folder / "overlay.yaml"),
        write_rl(folder / "rl.jsonl"),
        model_folder(folder, tied),
    )
    value = folder / f"{kind}.yaml"
    described = KINDS[kind].replace("MODEL", str(model)).replace("LR", "optimizer: {lr: 1.0e-3, warmup_steps: 2}")
    value.write_text(
        "objective:\n  class_path: dirl.objectives.TraceRL\n"
        "  init_args: {value: true, normalization: sequence, shrink: 2, gamma: 0.95, lam: 0.9, value_clip: 0.01}\n"
        f"model:\n  init_args:\n    value: {described}\n"
        "    source:\n      class_path: dirl.models.PretrainedModel\n"
        f"      init_args: {{path: {model}}}\n"
        "data: {init_args: {passes: 2, token_budget: 60}}\n"
    )
    configs = [x for path in (CONFIGS / "debug" / "rl.yaml", overlay, value) for x in ("--config", path)]
    return [*configs, f"--data.init_args.train={data}"]


@pytest.mark.parametrize("kind", ["own", pytest.param("shared", marks=pytest.mark.thorough)])
def test_a_run_is_resumed_again_and_again_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Value model, its optimizer and schedule, and what each token was worth in the rollout under way."""
    args = [*value_args(tmp_path, kind), "--model.init_args.offload_optimizer=true"]
    whole = fit(tmp_path / "whole", *args)
    assert max(metrics(whole, "train/value_clip_fraction")) > 0
    assert metrics(whole, "train/value_lr") == pytest.approx([0, 5e-4, *[1e-3] * 6])
    check_chain(whole, args, [1, 3, 4], 8)
    exported, weights = load_file(whole / "model" / "model.safetensors"), torch.load(checkpoint(whole, 8))["state_dict"]
    assert not any("value" in name for name in exported)
    assert any(name.startswith("value_model.") for name in weights)
    PretrainedModel(str(checkpoint(whole, 8))).build(PretrainedModel(str(checkpoint(whole, 8))).describe().config)


def test_other_settings_of_the_values_optimizer_act_in_a_resumed_run_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    args = value_args(tmp_path, "shared")
    whole = fit(tmp_path / "whole", *args)
    other = "--model.init_args.value.optimizer.lr=0.002"
    resumed = fit(tmp_path / "resumed", *args, other, f"--ckpt_path={checkpoint(whole, 4)}")
    assert metrics(resumed, "train/value_lr") == pytest.approx([1e-3, *[2e-3] * 4])
    assert metrics(resumed, "train/lr") == metrics(whole, "train/lr")[3:]
    assert "value.lr 0.001 -> 0.002" in caplog.text + capsys.readouterr().err


def test_a_run_without_values_does_not_go_on_from_a_checkpoint_with_them(tmp_path: Path) -> None:
    args = value_args(tmp_path, "shared")
    whole = fit(tmp_path / "whole", *args)
    without = ["--model.init_args.value=null", "--objective.init_args.value=false"]
    with pytest.raises(ValueError, match=r"is of another model: .*value_model\.weight"):
        fit(tmp_path / "other", *args, *without, f"--ckpt_path={checkpoint(whole, 4)}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind on one process, on two with DDP and FSDP2, and from the middle of the first rollout of the latter."""
    folder = tmp_path_factory.mktemp("values")
    args = {kind: [*value_args(folder / kind, kind, tied=kind == "own"), "--trainer.max_epochs=1"] for kind in KINDS}
    for kind, own in args.items():
        fit(folder / f"{kind}-single", *own)
    two = {f"{kind}-{strategy}": [strategy, *own] for kind, own in args.items() for strategy in ("ddp", "fsdp")}
    for kind, own in args.items():
        written = folder / f"{kind}-fsdp" / "logs" / "version_0" / "checkpoints" / "step=2.ckpt"
        two[f"{kind}-resumed"] = ["fsdp", *own, f"--ckpt_path={written}"]
    fit_all(folder, two, processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, strategy: str, runs: Path) -> None:
    """Losses, both gradients, and what is explained over all ranks; each rank has half of the trajectories."""
    one, two = runs / f"{kind}-single", runs / f"{kind}-{strategy}"
    for name in LOGGED:
        first, second = metrics(one, f"train/{name}"), metrics(two, f"train/{name}")
        assert len(first) == len(second) == 4, name
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5), name
    exported = [load_file(root / "model" / "model.safetensors") for root in (one, two)]
    assert exported[0].keys() == exported[1].keys()
    for name, value in exported[0].items():
        torch.testing.assert_close(exported[1][name], value, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_two_sharded_processes_resumed_in_mid_epoch_equal_one_go(kind: str, runs: Path) -> None:
    whole, resumed = runs / f"{kind}-fsdp", runs / f"{kind}-resumed"
    for name in LOGGED:
        assert metrics(resumed, f"train/{name}") == pytest.approx(
            metrics(whole, f"train/{name}")[1:], rel=1e-5, abs=1e-7
        )


def test_a_value_loss_that_is_not_finite_holds_back_both_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy's loss and gradient of that step are finite."""
    plain, calls = of_value.value_loss, []

    def broken(*args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        calls.append(args)
        loss, sums = plain(*args)
        return (loss * torch.nan if len(calls) == 1 else loss), sums

    monkeypatch.setattr(of_value, "value_loss", broken)
    root = fit(tmp_path / "run", *value_args(tmp_path, "own"), "--trainer.max_epochs=1")
    assert max(metrics(root, "train/skipped_steps")) == 1
    assert checkpoint(root, 3).exists() and not list(root.glob("logs/*/checkpoints/step=4.ckpt"))
    steps = [
        torch.load(checkpoint(root, 3), weights_only=True)["optimizer_states"][i]["state"][0]["step"] for i in (0, 1)
    ]
    assert steps == [3, 3]
    for name, value in torch.load(checkpoint(root, 3), weights_only=True)["state_dict"].items():
        assert value.isfinite().all(), name
