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
    return TASKS[request.param](seed=7, train_prompts=20, val_prompts=10, solutions=30, val_solutions=5)


SPLITS = ("train", "val")


def test_files_are_the_rows_of_the_task(task, tmp_path):
    folder = tmp_path / "new" / "data"
    write_task_files(task, folder)
    names = ("sft", "sft_val", "rl", "eval")
    read = [[json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in names]
    assert read == [*(task.conversations(split) for split in SPLITS), *(task.rows(split) for split in SPLITS)]


def test_the_recipes_are_filled_in_with_what_the_task_says(task, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "main", ran.append)
    fit("sft", tmp_path, sft_options(task, tmp_path))
    fit("rl", tmp_path, rl_options(task, tmp_path))
    assert [Path(args[-1]).name for args in ran] == ["sft.yaml", "rl.yaml"]
    sft, rl = (OmegaConf.load(tmp_path / name) for name in ("sft.yaml", "rl.yaml"))
    assert sft.task == rl.task == {"class_path": f"dirl.tasks.{type(task).__name__}", "init_args": {"seed": 7}}
    assert sft.model.init_args.source.init_args.alphabet == task.alphabet
    assert sft.model.init_args.source.init_args.words == list(task.words)
    assert rl.data.init_args.max_prompt_tokens == task.max_prompt_tokens
    assert rl.model.init_args.decoding.max_response_tokens == task.max_response_tokens
    assert rl.seed_everything == rl.rollout.seed == sft.data.init_args.seed == 7


def test_the_task_of_a_recipe_is_the_one_whose_rows_are_written(task):
    """Its options are those of the class, the seed apart."""
    whole = vars(TASKS[task.name](seed=7))
    assert [whole[name] for name in ("train_prompts", "val_prompts", "solutions")] == [2_000, 200, 20_000]
