"""What a run's folder tells: several starts are one run, secrets stay where they are, damage is named."""

import json
from pathlib import Path

import pytest
from tests.unit.report.run_folders import rl_rows, sft_rows, write_start

from dirl.report.run_folder import read_run


def test_rows_of_a_resumed_run_replace_those_of_the_same_step(tmp_path: Path) -> None:
    write_start(tmp_path, [{"step": step, "train/loss": 10.0 + step} for step in range(5)])
    resumed = [{"step": step, "train/loss": 20.0 + step} for step in range(3, 7)]
    write_start(tmp_path, resumed, 1, {"ckpt_path": "last.ckpt"})
    write_start(tmp_path, [{"step": 6, "train/loss": 36.0}], 10, {"ckpt_path": "last.ckpt"})
    run = read_run(tmp_path)
    assert run.series["train/loss"] == ([0, 1, 2, 3, 4, 5, 6], [10.0, 11.0, 12.0, 23.0, 24.0, 25.0, 36.0])
    assert [folder.name for folder in run.folders] == ["version_0", "version_1", "version_10"]


def test_columns_of_one_step_may_stand_in_several_rows(tmp_path: Path) -> None:
    write_start(tmp_path, [{"step": 3, "train/loss": 1.0}, {"step": 3, "rollout/reward": 0.5}])
    assert read_run(tmp_path).series == {"train/loss": ([3], [1.0]), "rollout/reward": ([3], [0.5])}


def test_a_run_that_was_started_anew_in_the_same_folder_is_another(tmp_path: Path) -> None:
    write_start(tmp_path, [{"step": 9, "train/loss": 1.0}])
    write_start(tmp_path, [{"step": 0, "train/loss": 2.0}], 1)
    write_start(tmp_path, [{"step": 1, "train/loss": 3.0}], 2, {"ckpt_path": "last.ckpt"})
    run = read_run(tmp_path)
    assert run.series["train/loss"] == ([0, 1], [2.0, 3.0])
    assert [folder.name for folder in run.earlier] == ["version_0"]


def test_a_version_folder_is_a_run_of_its_own(tmp_path: Path) -> None:
    folder = write_start(tmp_path, sft_rows())
    assert read_run(folder).folders == (folder,)


@pytest.mark.parametrize(("rows", "stage"), [(rl_rows(), "RL"), (sft_rows(), "SFT")])
def test_the_stage_is_told_by_what_was_logged(tmp_path: Path, rows: list, stage: str) -> None:
    write_start(tmp_path, rows, config={"model": {"class_path": "my.Module"}})
    assert read_run(tmp_path).learns_by == stage


def test_evaluations_of_all_starts_are_one_history(tmp_path: Path) -> None:
    first = [{"step": 0, "eval/greedy/accuracy": 0.1}, {"step": 4, "eval/greedy/accuracy": 0.2}]
    write_start(tmp_path, rl_rows(), evaluations=first)
    again = [{"step": 4, "eval/greedy/accuracy": 0.3}, {"step": 8, "eval/greedy/accuracy": 0.4}]
    write_start(tmp_path, rl_rows(), 1, {"ckpt_path": "x"}, evaluations=again)
    write_start(tmp_path, rl_rows(), 2, {"ckpt_path": "x"})
    assert [row["eval/greedy/accuracy"] for row in read_run(tmp_path).evaluations] == [0.1, 0.3, 0.4]


def test_settings_are_flat_and_without_secrets(tmp_path: Path) -> None:
    logger = {"class_path": "my.Logger", "init_args": {"api_key": "0123", "url": "https://me:pass@host/x"}}
    write_start(tmp_path, rl_rows(), config={"trainer": {"logger": [logger], "devices": [0, 1]}})
    config = read_run(tmp_path).config
    assert config["trainer.logger[0].init_args.api_key"] == "(hidden)"
    assert config["trainer.logger[0].init_args.url"] == "https://(hidden)@host/x"
    assert config["trainer.devices"] == "[0, 1]" and config["ckpt_path"] == "null"


def test_what_is_not_finite_is_counted_and_not_drawn(tmp_path: Path) -> None:
    write_start(
        tmp_path, [{"step": 0, "train/loss": "nan"}, {"step": 1, "train/loss": "inf"}, {"step": 2, "train/loss": 1}]
    )
    run = read_run(tmp_path)
    assert run.series["train/loss"] == ([2], [1.0]) and run.not_finite == {"train/loss": 2}


def test_half_a_row_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    folder = write_start(tmp_path, [{"step": 0, "train/loss": 1.5, "train/lr": 0.1}])
    with (folder / "metrics.csv").open("a") as file:
        file.write("1,1.")
    assert read_run(tmp_path).series["train/loss"] == ([0], [1.5])


def test_without_a_config_the_curves_are_there(tmp_path: Path) -> None:
    (write_start(tmp_path, rl_rows()) / "config.yaml").unlink()
    assert read_run(tmp_path).config == {} and read_run(tmp_path).learns_by == "RL"


def test_what_is_no_run_is_said_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere': no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"so this is no run; name its trainer\.default_root_dir"):
        read_run(tmp_path)
    for name in ("sft", "rl"):
        write_start(tmp_path / "demo" / name, rl_rows())
    with pytest.raises(ValueError, match="it holds runs in rl, sft: name these"):
        read_run(tmp_path / "demo")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv: has no column `step`"),
        ("metrics.csv", "step,train/loss\n1,much\n", r"metrics.csv:2: train/loss: could not convert.*'much'"),
        ("metrics.csv", "step,train/loss\n,1\n", "metrics.csv:2: step: could not convert"),
        ("config.yaml", "{a: 1", "config.yaml: no YAML"),
        ("evaluation.json", "[{}]", r"evaluation.json: no list of evaluations \('step'\)"),
        ("evaluation.json", "{", "evaluation.json: no list of evaluations"),
        ("evaluation.json", json.dumps([{"step": 1, "a": "x"}]), "evaluation.json: no list of evaluations"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (write_start(tmp_path, rl_rows()) / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)
