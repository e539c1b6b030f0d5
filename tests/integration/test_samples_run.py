"""A run that shows samples: in the terminal, in TensorBoard, in a file; the same again after a resume."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.integration.test_runs import CONFIGS, assert_same, fit, rl_args, weights
from tests.integration.toy import write_sft

from dirl.cli.errors import entry
from dirl.report.run_folder import read_run
from dirl.report.run_samples import samples_of

SAMPLES = "--samples={every_n_epochs: 2, count: 2}"


def kept(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_samples_are_shown_logged_and_kept_and_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = rl_args(tmp_path)
    plain = fit(tmp_path / "plain", *args, "--trainer.max_epochs=4")
    said = capsys.readouterr().out
    assert "samples of" not in said
    run = fit(tmp_path / "run", *args, "--trainer.max_epochs=4", SAMPLES)
    said = capsys.readouterr().out
    assert [f"samples of epoch {epoch}" in said for epoch in range(4)] == [True, False, True, True], "the last one too"
    rows = kept(run / "logs" / "version_0")
    assert [row["epoch"] for row in rows] == [0, 0, 2, 2, 3, 3]
    assert all(row["question"].startswith("?") and row["rewards"].keys() == {"letters"} for row in rows)
    events = EventAccumulator(str(run / "logs" / "version_0")).Reload()
    shown = events.Tensors("samples/text_summary")
    assert [event.step for event in shown] == [0, 4, 6]
    assert_same(weights(plain), weights(run))


def test_a_resumed_run_shows_each_epoch_and_the_report_has_them_once(tmp_path: Path) -> None:
    args = [*rl_args(tmp_path), SAMPLES]
    whole = fit(tmp_path / "whole", *args, "--trainer.max_epochs=4")
    run = fit(tmp_path / "run", *args, "--trainer.max_steps=5", "--trainer.max_epochs=4")
    fit(tmp_path / "run", *args, "--trainer.max_epochs=4", "--ckpt_path=last")
    first, second = (kept(run / "logs" / f"version_{k}") for k in range(2))
    assert [row["epoch"] for row in first] == [0, 0, 2, 2] and [row["epoch"] for row in second] == [3, 3]
    assert samples_of(read_run(run))["rows"] == samples_of(read_run(whole))["rows"]


def test_a_stage_without_rollouts_has_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    config = ["--config", str(CONFIGS / "debug" / "sft.yaml"), f"--data.init_args.train={data}"]
    assert entry(["fit", *config, "--samples={}", f"--trainer.default_root_dir={tmp_path}"]) == 1
    assert "samples: in the config, and SFTModule makes no rollouts" in capsys.readouterr().err
