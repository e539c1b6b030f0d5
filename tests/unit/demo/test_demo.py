"""The demo hands a task to the two recipes: its rows as files, its alphabet, limits and reward."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dirl.cli import main as cli
from dirl.demo.data import write_task_files
from dirl.demo.run import TASKS, fit, rl_options, sft_options


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return TASKS[request.param](train_prompts=20, val_prompts=10, solutions=30)


def test_files_are_the_rows_of_the_task(task, tmp_path):
    written = write_task_files(task, tmp_path / "new" / "data")
    read = [[json.loads(line) for line in p.read_text().splitlines()] for p in (written.sft, written.rl, written.eval)]
    assert read == [task.conversations(), task.rows("train"), task.rows("val")]


def test_the_recipes_are_filled_in_with_what_the_task_says(task, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "main", ran.append)
    written = write_task_files(task, tmp_path)
    fit("sft", tmp_path, sft_options(task, written, written, 7, tmp_path))
    fit("rl", tmp_path, rl_options(task, written, 7, tmp_path))
    assert [Path(args[-1]).name for args in ran] == ["sft.yaml", "rl.yaml"]
    sft, rl = (OmegaConf.load(tmp_path / name) for name in ("sft.yaml", "rl.yaml"))
    assert sft.model.init_args.source.init_args.alphabet == task.alphabet
    assert rl.rollout.rewards == [{"class_path": f"dirl.rewards.{type(task.rewards()[0]).__name__}"}]
    assert rl.data.init_args.max_prompt_tokens == task.max_prompt_tokens
    assert rl.model.init_args.decoding.max_response_tokens == task.max_response_tokens
    assert rl.seed_everything == sft.data.init_args.seed == 7
