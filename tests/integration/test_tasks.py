"""Runs and commands whose task has the key `task`: they do with its rows what they do with the same rows in files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.integration.test_runs import CONFIGS, assert_same, fit, rl_args, weights
from tests.integration.toy import metrics

from dirl.cli.main import main
from dirl.cli.plan import read_plan
from dirl.tasks import Arithmetic, Split
from dirl.trajectory_files import read_trajectories

TASK = ("--task=dirl.tasks.Arithmetic", "--task.train_prompts=20", "--task.val_prompts=4", "--data.train=null")

MODEL = (
    *("--source=dirl.models.NewModel", "--source.block_size=4", "--source.hidden_size=32", "--source.head_dim=8"),
    *("--source.num_hidden_layers=1", "--source.seed=1"),
)


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def commands_on(task: Arithmetic, folder: Path, split: Split) -> dict[str, list[str]]:
    """Options of commands: the rows of a split in a file, and the task that makes them."""
    of_task = ["--task=dirl.tasks.Arithmetic", "--task.train_prompts=3", "--task.val_prompts=4"]
    path = write(folder / f"{split}-rows.jsonl", task.rows(split))
    return {"files": [*MODEL, f"--data.path={path}"], "task": [*MODEL, *of_task]}


def test_a_generated_task_trains_as_its_rows_in_a_file_do(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    task = Arithmetic(train_prompts=20, val_prompts=4)
    write(rows, task.rows("train"))
    of_files = fit(tmp_path / "files", *rl_args(tmp_path), f"--data.train={rows}")
    of_task = fit(tmp_path / "task", *rl_args(tmp_path), *TASK)
    assert metrics(of_task, "train/loss") == metrics(of_files, "train/loss")
    assert_same(weights(of_task), weights(of_files))


def test_sft_learns_the_conversations_of_a_task_as_it_does_those_in_files(tmp_path: Path) -> None:
    task = Arithmetic(solutions=30, val_solutions=9)
    files = [write(tmp_path / f"{split}.jsonl", task.conversations(split)) for split in ("train", "val")]
    options = ("--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3")
    args = ("--config", CONFIGS / "debug" / "sft.yaml", *options)
    of_files = fit(tmp_path / "files", *args, f"--data.train={files[0]}", f"--data.val={files[1]}")
    of_task = fit(tmp_path / "task", *args, *TASK[:1], "--task.solutions=30", "--task.val_solutions=9", TASK[-1])
    for name in ("train/loss", "val/nelbo_per_token"):
        assert metrics(of_task, name) == metrics(of_files, name) != []
    assert_same(weights(of_task), weights(of_files))


def test_a_task_that_has_no_conversations_is_refused_by_sft(tmp_path: Path) -> None:
    args = ("--config", CONFIGS / "debug" / "sft.yaml", "--task=dirl.tasks.Files", "--data.train=null")
    with pytest.raises(
        ValueError, match=r"train='x.jsonl': it has no conversations, which SFT learns from; take a task"
    ):
        fit(tmp_path / "run", *args, "--task.train=x.jsonl")


def test_rows_of_a_task_that_are_wrong_are_named_by_their_number(tmp_path: Path) -> None:
    args = ("--config", CONFIGS / "debug" / "sft.yaml", *TASK[:1], TASK[-1], "--data.overflow=error")
    with pytest.raises(ValueError, match=r"task Arithmetic, train, row 1: \d+ tokens, max_tokens=8; raise the limit"):
        fit(tmp_path / "run", *args, "--data.max_tokens=8")


def test_rollout_and_evaluate_answer_the_prompts_of_a_task(tmp_path: Path) -> None:
    task, rows = Arithmetic(train_prompts=3, val_prompts=4), {}
    options = ("--decoding.max_response_tokens=8", "--data.split=train")
    for name, given in commands_on(task, tmp_path, "train").items():
        main(["rollout", *given, *options[: 1 if name == "files" else 2], f"--output={tmp_path / name}.jsonl"])
        rows[name] = list(read_trajectories(tmp_path / f"{name}.jsonl"))
    assert rows["task"] == rows["files"] and len(rows["task"]) == 3

    decoding = "--decoding={greedy: {temperature: 0, max_response_tokens: 8}}"
    for name, given in commands_on(task, tmp_path, "val").items():
        rewards = [] if name == "task" else ["--rewards=[dirl.rewards.ExactAnswer]"]
        main(["evaluate", *given, decoding, *rewards, f"--output={tmp_path / name}"])
        rows[name] = list(read_trajectories(tmp_path / name / "greedy.jsonl"))
    assert rows["task"] == rows["files"] and len(rows["task"]) == 4
    assert [t.rewards for t in rows["task"]] == [{"exact_answer": 0}] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "data.path and task: neither is given"),
        (["--task=dirl.tasks.Sudoku", "--data.path=x.jsonl"], "data.path='x.jsonl': given, and so is task=Sudoku"),
        (["--task=dirl.tasks.Sudoku", "--data.split=test"], "data.split='test': a task has train and val"),
        (["--task=dirl.tasks.Files", "--task.val=x"], "rewards: none are given, and task=Files names none"),
        (["--data.path=x.jsonl"], "rewards: none are given; name one"),
        (["--task=dirl.tasks.Files", "--rewards=[dirl.rewards.Accuracy]"], "val=None: the task has no such prompts"),
    ],
)
def test_what_an_evaluation_lacks_is_said(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["evaluate", *MODEL, "--decoding={greedy: {temperature: 0}}", *options])


def test_a_task_brings_its_rewards_and_validation_prompts(tmp_path: Path) -> None:
    evaluate = "--evaluate={decoding: {greedy: {temperature: 0, max_response_tokens: 8}}, every_n_epochs: 1}"
    args = ("--config", CONFIGS / "debug" / "rl.yaml", "--config", CONFIGS / "task" / "arithmetic.yaml")
    root = fit(tmp_path / "run", *args, *TASK[1:3], evaluate, "--trainer.max_epochs=1")
    assert metrics(root, "rollout/reward/exact_answer") == [0]
    assert len(metrics(root, "eval/greedy/accuracy")) >= 1


def test_a_plan_needs_no_files(tmp_path: Path) -> None:
    for recipe in (rl_args(tmp_path), ["--config", CONFIGS / "debug" / "sft.yaml"]):
        args = map(str, (*recipe, TASK[0], TASK[-1], "--memory=1GB"))
        assert read_plan(list(args)).noised.tokens > 0
