"""Runs whose task has the key `task`: they learn what the same rows in files teach, and evaluate on its own prompts."""

import json
from pathlib import Path

from tests.integration.test_runs import CONFIGS, assert_same, fit, rl_args, weights
from tests.integration.toy import metrics

from dirl.cli.plan import read_plan
from dirl.tasks import Arithmetic

TASK = ("--task=dirl.tasks.Arithmetic", "--task.train_prompts=20", "--task.val_prompts=4", "--data.train=null")


def test_a_generated_task_trains_as_its_rows_in_a_file_do(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    task = Arithmetic(train_prompts=20, val_prompts=4)
    rows.write_text("".join(json.dumps(row) + "\n" for row in task.rows("train")), encoding="utf-8")
    of_files = fit(tmp_path / "files", *rl_args(tmp_path), f"--data.train={rows}")
    of_task = fit(tmp_path / "task", *rl_args(tmp_path), *TASK)
    assert metrics(of_task, "train/loss") == metrics(of_files, "train/loss")
    assert_same(weights(of_task), weights(of_files))


def test_a_task_brings_its_rewards_and_validation_prompts(tmp_path: Path) -> None:
    evaluate = "--evaluate={decoding: {greedy: {temperature: 0, max_response_tokens: 8}}, every_n_epochs: 1}"
    args = ("--config", CONFIGS / "debug" / "rl.yaml", "--config", CONFIGS / "task" / "arithmetic.yaml")
    root = fit(tmp_path / "run", *args, *TASK[1:3], evaluate, "--trainer.max_epochs=1")
    assert metrics(root, "rollout/reward/exact_answer") == [0]
    assert len(metrics(root, "eval/greedy/accuracy")) >= 1


def test_a_plan_needs_no_files(tmp_path: Path) -> None:
    args = map(str, (*rl_args(tmp_path), *TASK, "--memory=1GB"))
    assert read_plan(list(args)).noised.tokens > 0
