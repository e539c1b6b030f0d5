"""Runs whose rollouts have nothing to teach."""

from pathlib import Path

import pytest
from tests.integration.test_runs import fit, rl_args
from tests.integration.toy import metrics

from dirl.checkpoints.reading import read
from dirl.errors import NothingToLearnError

UNIFORM = "[{class_path: dirl.rewards.ExactAnswer}]"
DYNAMIC = "        dynamic_sampling: true\n        max_rounds: 1\n        max_empty_rollouts: 2"


def test_a_run_that_learns_nothing_ends_with_the_reason(tmp_path: Path) -> None:
    args = [*rl_args(tmp_path, rewards=UNIFORM, rollout=DYNAMIC), "--trainer.max_epochs=-1", "--trainer.max_steps=4"]
    with pytest.raises(NothingToLearnError, match=r"no group of the last 3 rollouts .*max_empty_rollouts=2.* 4 groups"):
        fit(tmp_path / "run", *args)
    assert read(tmp_path / "run" / "error.ckpt").values["callbacks"]["Rollout"]["empty_rollouts"] == 3
    with pytest.raises(NothingToLearnError, match="the last 4 rollouts"):  # the count goes on where a run does
        fit(tmp_path / "run", *args, "--ckpt_path=last")


def test_steps_in_which_all_advantages_are_0_are_made_without_a_row(tmp_path: Path) -> None:
    """Their gradient is 0, and the schedule goes on; what is a mean over tokens is not logged of none."""
    fit(tmp_path / "run", *rl_args(tmp_path, rewards=UNIFORM))
    assert metrics(tmp_path / "run", "rollout/uniform_groups") == metrics(tmp_path / "run", "rollout/groups")
    for name in ("train/loss", "train/grad_norm", "train/scored_tokens", "train/packed_tokens", "data/fill_rate"):
        assert metrics(tmp_path / "run", name) == [0.0] * 4, name
    assert metrics(tmp_path / "run", "train/entropy") == []
