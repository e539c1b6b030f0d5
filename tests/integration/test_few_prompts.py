"""Fewer prompts, or rows, than processes: one has nothing to do and waits for nobody, nor the others for it."""

from pathlib import Path

import pytest
from tests.integration.one_run import run
from tests.integration.test_strategies import assert_equal_runs
from tests.integration.test_two_processes import CALLBACKS, CONFIGS, fit
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

STRATEGIES = ["fsdp", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("ddp", "fsdp_tp"))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rl_and_evaluations_of_one_prompt_on_two_processes(strategy: str, tmp_path: Path) -> None:
    """All callbacks, bars and loggers on."""
    data, val = write_rl(tmp_path / "rl.jsonl"), write_rl(tmp_path / "val.jsonl", 1)
    overlay = rl_overlay(tmp_path / "overlay.yaml", more=CALLBACKS)
    args = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    few = ["--data.init_args.prompts_per_rollout=1", "--data.init_args.steps_per_rollout=1"]
    root = tmp_path / "run"
    fit(root, strategy, *args, *few, f"--data.init_args.val={val}")
    assert len(metrics(root, "train/loss")) == 2
    assert max(metrics(root, "train/grad_norm")) > 0
    assert metrics(root, "rollout/groups") == [1, 1]


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.thorough)])
def test_where_most_groups_teach_nothing_two_processes_have_the_losses_of_one(strategy: str, tmp_path: Path) -> None:
    """In some steps one of them has no row, in some neither."""
    rewards = "[{class_path: tests.integration.toy.LettersOfSome}]"
    data, overlay = write_rl(tmp_path / "rl.jsonl"), rl_overlay(tmp_path / "overlay.yaml", rewards)
    args = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    args += ["--data.init_args.token_budget=100", "--trainer.max_epochs=3"]
    one, two = (run(tmp_path / name, name, *args) for name in ("single", strategy))
    assert_equal_runs(one, two)
    scored = metrics(one, "train/scored_tokens")
    assert scored == metrics(two, "train/scored_tokens") and 0.0 in scored and max(scored) > 0
    assert 6 < sum(metrics(one, "rollout/uniform_groups")) < 12


@pytest.mark.thorough
def test_an_odd_number_of_prompts_and_steps_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    data, overlay = write_rl(tmp_path / "rl.jsonl"), rl_overlay(tmp_path / "overlay.yaml")
    args = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    args += ["--data.init_args.prompts_per_rollout=5", "--data.init_args.steps_per_rollout=3"]
    single, sharded = (run(tmp_path / name, name, *args) for name in ("single", "fsdp"))
    assert_equal_runs(single, sharded)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sft_and_validation_of_one_conversation_on_two_processes(strategy: str, tmp_path: Path) -> None:
    data, val = write_sft(tmp_path / "sft.jsonl"), write_sft(tmp_path / "val.jsonl", 1)
    args = ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}"]
    args += [f"--data.init_args.val={val}", "--data.init_args.global_batch_size=1", "--trainer.val_check_interval=2"]
    args += ["--trainer.check_val_every_n_epoch=null"]
    fit(tmp_path / "run", strategy, *args)
    assert len(metrics(tmp_path / "run", "train/loss")) == 4
    assert len(metrics(tmp_path / "run", "val/nelbo_per_token")) == 2
