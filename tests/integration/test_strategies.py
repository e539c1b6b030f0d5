"""All strategies with two CPU processes give the losses and the weights of one process, in both stages.

`hybrid` has two copies then, and `fsdp_tp` two parts of each matrix; `test_mesh_gradients` has four processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
STRATEGIES = ["ddp", "fsdp", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("hybrid", "fsdp_tp"))]
"""The others have a quick case each in `test_fsdp_gradients`."""
FAST = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def run(root: Path, strategy: str, *args: object) -> Path:
    """A run that succeeds."""
    done = start(root, strategy, *args)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def start(root: Path, strategy: str, *args: object) -> subprocess.CompletedProcess[str]:
    """`dirl fit` in processes of its own, as a user starts it."""
    devices = 1 if strategy == "single" else 2
    command = [sys.executable, "-m", "dirl.cli", "fit", *map(str, args), *FAST]
    command += ["--config", str(CONFIGS / "strategy" / f"{strategy}.yaml"), f"--trainer.devices={devices}"]
    command += ["--trainer.strategy.init_args.shard_size=1"] if strategy == "hybrid" else []
    command += [f"--trainer.default_root_dir={root}"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert (devices == 2) == ("MEMBER: 2/2" in done.stderr + done.stdout)
    return done


def assert_equal_runs(one: Path, two: Path) -> None:
    """Sums over ranks are taken in another order, so fp32 losses agree to 1e-5 and not to the bit."""
    for name in ("train/loss", "train/grad_norm"):
        first, second = metrics(one, name), metrics(two, name)
        assert len(first) == len(second) > 0
        assert max(first) > 0
        assert second == pytest.approx(first, rel=1e-4, abs=1e-6), name
    first, second = (load_file(root / "model" / "model.safetensors") for root in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        # Adam divides by the root of tiny second moments: rounding of a gradient near zero moves a weight by up to lr.
        torch.testing.assert_close(second[name], value, rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def sft_args(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    data = write_sft(tmp_path_factory.mktemp("sft") / "sft.jsonl")
    # Several micro-batches a step, and in some steps another number on each rank: one must wait for the other.
    budget = "--data.init_args.token_budget=180"
    return ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}", budget]


@pytest.fixture(scope="module")
def rl_args(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("rl")
    overlay, data = rl_overlay(folder / "overlay.yaml"), write_rl(folder / "rl.jsonl")
    options = ["--data.init_args.passes=2", "--data.init_args.token_budget=200", "--objective.init_args.kl_coef=0.1"]
    return ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}", *options]


@pytest.fixture(scope="module")
def single_sft(tmp_path_factory: pytest.TempPathFactory, sft_args: list[object]) -> Path:
    return run(tmp_path_factory.mktemp("single") / "sft", "single", *sft_args)


@pytest.fixture(scope="module")
def single_rl(tmp_path_factory: pytest.TempPathFactory, rl_args: list[object]) -> Path:
    return run(tmp_path_factory.mktemp("single") / "rl", "single", *rl_args)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_of_sft_equal_one(
    strategy: str, tmp_path: Path, sft_args: list[object], single_sft: Path
) -> None:
    assert_equal_runs(single_sft, run(tmp_path / "run", strategy, *sft_args))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_of_rl_equal_one(strategy: str, tmp_path: Path, rl_args: list[object], single_rl: Path) -> None:
    assert_equal_runs(single_rl, run(tmp_path / "run", strategy, *rl_args))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_of_rl_resumed_in_mid_epoch_equal_one_go(
    strategy: str, tmp_path: Path, rl_args: list[object], single_rl: Path
) -> None:
    """Each process has a rollout of its own, and gets it back."""
    whole = run(tmp_path / "whole", strategy, *rl_args)
    checkpoint = whole / "logs" / "version_0" / "checkpoints" / "step=2.ckpt"  # half of the first rollout's passes
    resumed = run(tmp_path / "resumed", strategy, *rl_args, f"--ckpt_path={checkpoint}")
    assert len(metrics(resumed, "train/loss")) == len(metrics(single_rl, "train/loss")) - 1  # the checkpoint's again
    assert metrics(resumed, "train/loss") == pytest.approx(metrics(whole, "train/loss")[1:], rel=1e-5, abs=1e-7)
    first, second = (load_file(root / "model" / "model.safetensors") for root in (whole, resumed))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0 if strategy in ("hybrid", "fsdp_tp") else 1e-6)


def test_two_processes_of_an_objective_of_whole_sequences_equal_one(tmp_path: Path, rl_args: list[object]) -> None:
    """One ratio for a trajectory, whose views lie in several rows; the clip acts."""
    options = ["ratio=sequence", "clip_low=0.0005", "clip_high=0.0005", "kl_coef=0"]
    args = [*rl_args, *(f"--objective.init_args.{o}" for o in options), "--data.init_args.token_budget=80"]
    single, sharded = (run(tmp_path / name, name, *args, "--trainer.max_epochs=1") for name in ("single", "fsdp"))
    assert max(metrics(single, "train/clip_fraction")) > 0.1
    assert_equal_runs(single, sharded)


def test_all_processes_end_together_if_one_loses_its_engine_in_an_evaluation(
    tmp_path: Path, rl_args: list[object]
) -> None:
    """The other one must not wait for the metrics of the first, nor count its sums as theirs."""
    engine = "{class_path: tests.integration.engines.LostEngine, init_args: {lost_at: 1, rank: 1}}"
    overlay = rl_overlay(tmp_path / "overlay.yaml", more=EVALUATE)
    overlay.write_text(overlay.read_text().replace("{class_path: dirl.rollout.TorchEngine}", engine))
    data = next(str(a).split("=", 1)[1] for a in rl_args if str(a).startswith("--data.init_args.train="))
    done = start(tmp_path / "run", "ddp", *rl_args, "--config", overlay, f"--data.init_args.val={data}")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "process 1 of 2 has lost its engines: every server is gone" in said
    assert (tmp_path / "run" / "engines_lost.ckpt").exists()


EVALUATE = "evaluate: {decoding: {greedy: {temperature: 0, max_response_tokens: 8}, drawn: {max_response_tokens: 8}}}"


def test_the_token_budget_does_not_change_the_step(tmp_path: Path, sft_args: list[object], single_sft: Path) -> None:
    assert_equal_runs(single_sft, run(tmp_path / "run", "single", *sft_args, "--data.init_args.token_budget=4096"))


def test_sharded_bf16_training_exports_fp32_weights_after_a_validation(tmp_path: Path, sft_args: list[object]) -> None:
    """A forward without backward leaves gathered bf16 copies in FSDP2's root; they must not be what is exported."""
    data = next(str(a).split("=", 1)[1] for a in sft_args if str(a).startswith("--data.init_args.train="))
    options = ["--trainer.precision=bf16-mixed", f"--data.init_args.val={data}", "--trainer.val_check_interval=4"]
    options += [
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.enable_checkpointing=false",
    ]  # a save would reshard
    root = run(tmp_path / "run", "fsdp", *sft_args, *options)
    assert len(metrics(root, "val/nelbo_per_token")) == 1
    for name, value in load_file(root / "model" / "model.safetensors").items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float()), name
