"""All strategies with two CPU processes give the losses and the weights of one process, in both stages.

`hybrid` has two copies then, and `fsdp_tp` two parts of each matrix; `test_mesh_gradients` has four processes.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.one_run import CONFIGS, start
from tests.integration.several_runs import fit_all
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

STRATEGIES = ["ddp", "fsdp", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("hybrid", "fsdp_tp"))]
"""The others have a quick case each in `test_fsdp_gradients`."""


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
def single(tmp_path_factory: pytest.TempPathFactory, sft_args: list[object], rl_args: list[object]) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("single")
    runs = {
        "sft": [*sft_args],
        "rl": [*rl_args],
        "budget": [*sft_args, "--data.init_args.token_budget=4096"],
        "sequences": [*rl_args, *OF_SEQUENCES],
    }
    fit_all(folder, {name: ["single", *args] for name, args in runs.items()}, 1)
    return folder


OF_SEQUENCES = [
    *(f"--objective.init_args.{o}" for o in ("ratio=sequence", "clip_low=0.0005", "clip_high=0.0005", "kl_coef=0")),
    *("--data.init_args.token_budget=80", "--trainer.max_epochs=1"),
]


# A save of a checkpoint would shard the weights anew.
IN_BF16 = ["--trainer.precision=bf16-mixed", "--trainer.val_check_interval=4", "--trainer.enable_checkpointing=false"]
IN_BF16 += ["--trainer.check_val_every_n_epoch=null"]


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    sft_args: list[object],
    rl_args: list[object],
) -> Path:
    """Runs of two processes: for every strategy that is asked for, SFT, RL, and RL resumed in mid-epoch."""
    folder = tmp_path_factory.mktemp("pair")
    here = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    data = next(str(a).split("=", 1)[1] for a in sft_args if str(a).startswith("--data.init_args.train="))
    runs: dict[str, list[object]] = {
        "sequences": ["fsdp", *rl_args, *OF_SEQUENCES],
        "bf16": ["fsdp", *sft_args, *IN_BF16, f"--data.init_args.val={data}"],
    }
    for strategy in sorted({item.callspec.params["strategy"] for item in here if hasattr(item, "callspec")}):
        copies = ["--trainer.strategy.init_args.shard_size=1"] if strategy == "hybrid" else []
        runs[f"{strategy}-sft"] = [strategy, *sft_args, *copies]
        runs[f"{strategy}-rl"] = [strategy, *rl_args, *copies]
        half = folder / f"{strategy}-rl" / "logs" / "version_0" / "checkpoints" / "step=2.ckpt"  # of two passes
        runs[f"{strategy}-resumed"] = [strategy, *rl_args, *copies, f"--ckpt_path={half}"]
    fit_all(folder, runs, 2)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_two_processes_equal_one(stage: str, strategy: str, single: Path, pair: Path) -> None:
    assert_equal_runs(single / stage, pair / f"{strategy}-{stage}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_of_rl_resumed_in_mid_epoch_equal_one_go(strategy: str, single: Path, pair: Path) -> None:
    """Each process has a rollout of its own, and gets it back."""
    whole, resumed = pair / f"{strategy}-rl", pair / f"{strategy}-resumed"
    losses = metrics(single / "rl", "train/loss")
    assert len(metrics(resumed, "train/loss")) == len(losses) - 1  # the checkpoint's again
    assert metrics(resumed, "train/loss") == pytest.approx(metrics(whole, "train/loss")[1:], rel=1e-5, abs=1e-7)
    first, second = (load_file(root / "model" / "model.safetensors") for root in (whole, resumed))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0 if strategy in ("hybrid", "fsdp_tp") else 1e-6)


def test_two_processes_of_an_objective_of_whole_sequences_equal_one(single: Path, pair: Path) -> None:
    """One ratio for a trajectory, whose views lie in several rows; the clip acts."""
    assert max(metrics(single / "sequences", "train/clip_fraction")) > 0.1
    assert_equal_runs(single / "sequences", pair / "sequences")


def test_all_processes_end_together_if_one_loses_its_engine_in_an_evaluation(
    tmp_path: Path, rl_args: list[object]
) -> None:
    """The other one must not wait for the metrics of the first, nor count its sums as theirs."""
    engine = "{class_path: tests.integration.engines.LostEngine, init_args: {lost_at: 1, rank: 1}}"
    overlay = rl_overlay(tmp_path / "overlay.yaml", more=EVALUATE)
    overlay.write_text(overlay.read_text().replace("{class_path: dirl.rollout.TorchEngine}", engine))
    data = next(str(a).split("=", 1)[1] for a in rl_args if str(a).startswith("--data.init_args.train="))
    args = [*rl_args, "--config", overlay, f"--data.init_args.val={data}"]
    done = start(tmp_path / "run", "ddp", *args)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "process 1 of 2 has lost its engines: every server is gone" in said
    assert (tmp_path / "run" / "engines_lost.ckpt").exists()


EVALUATE = "evaluate: {decoding: {greedy: {temperature: 0, max_response_tokens: 8}, drawn: {max_response_tokens: 8}}}"


def test_the_token_budget_does_not_change_the_step(single: Path) -> None:
    assert_equal_runs(single / "sft", single / "budget")


def test_sharded_bf16_training_exports_fp32_weights_after_a_validation(pair: Path) -> None:
    """A forward without backward leaves gathered bf16 copies in FSDP2's root; they must not be what is exported."""
    root = pair / "bf16"
    assert len(metrics(root, "val/nelbo_per_token")) == 1
    for name, value in load_file(root / "model" / "model.safetensors").items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float()), name
