"""What a run says of its rewards: equal ones, and which of them is correctness."""

from pathlib import Path

import pytest
from tests.integration.toy import metrics, rl_overlay, write_rl

from dirl.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"


def fit(tmp_path: Path, rewards: str, rollout: str = "", epochs: int = 1) -> Path:
    overlay = rl_overlay(tmp_path / "overlay.yaml", rewards=rewards, rollout=rollout)
    data = write_rl(tmp_path / "rl.jsonl")
    files = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay]
    options = [
        f"--data.init_args.train={data}",
        f"--trainer.default_root_dir={tmp_path}",
        f"--trainer.max_epochs={epochs}",
    ]
    main(["fit", *map(str, files + options), "--trainer.enable_progress_bar=false"])
    return tmp_path


def test_equal_rewards_in_every_group_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fit(tmp_path, "[{class_path: dirl.rewards.ExactAnswer}]", epochs=2)  # an untrained model is never right
    assert metrics(root, "rollout/uniform_groups") == metrics(root, "rollout/groups") != []
    assert metrics(root, "rollout/accuracy") == metrics(root, "rollout/reward/incomparable") == [0.0, 0.0]
    assert caplog.text.count("every advantage is 0, so are loss and gradient") == 1, "of two rollouts, once"
    caplog.clear()
    other = tmp_path / "other"
    other.mkdir()
    fit(other, "[{class_path: tests.integration.toy.Letters}]")
    assert metrics(other, "rollout/uniform_groups") == [0.0]
    assert "every advantage is 0" not in caplog.text


def test_accuracy_is_that_of_the_reward_that_judges_and_not_of_the_first(tmp_path: Path) -> None:
    rewards = "[{class_path: tests.integration.toy.Letters}, {class_path: dirl.rewards.ExactAnswer}]"
    root = fit(tmp_path, rewards)
    assert metrics(root, "rollout/reward/letters")[0] > 0
    assert metrics(root, "rollout/accuracy") == [0.0]
    named = tmp_path / "named"
    named.mkdir()
    fit(named, rewards, rollout="        correct: letters")
    assert metrics(named, "rollout/accuracy")[0] > 0.5


def test_rewards_that_judge_nothing_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises((SystemExit, ValueError)):
        fit(tmp_path, "[{class_path: dirl.rewards.Boxed}, {class_path: dirl.rewards.Length}]")
    assert not list(tmp_path.glob("logs/**/metrics.csv"))
