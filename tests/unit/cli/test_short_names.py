"""What is written short means the class and its options."""

from pathlib import Path

import pytest

from dirl.cli.short_names import long_names

PRETRAINED = "--source=dirl.models.PretrainedModel"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["--source", "runs/rl/model"], [PRETRAINED, "--source.path=runs/rl/model"]),
        (["--source=owner/name", "--seed", "1"], [PRETRAINED, "--source.path=owner/name", "--seed", "1"]),
        (["--seed=1", "--source.path", "model"], ["--seed=1", PRETRAINED, "--source.path", "model"]),
        (["--source.init_args.path=model"], [PRETRAINED, "--source.init_args.path=model"]),
        (["--task", "lm_eval:a, b"], ["--task=dirl.tasks.LMEval", '--task.names=["a", "b"]']),
    ],
)
def test_a_short_form_is_its_class_and_what_that_needs(short: list[str], long: list[str]) -> None:
    assert long_names(short) == long


@pytest.mark.parametrize(
    "args",
    [
        ["--source=dirl.models.NewModel", "--source.hidden_size=32"],
        ['--source={"class_path": "dirl.models.PretrainedModel", "init_args": {"path": "a/b"}}'],
        ["--config", "eval.yaml", "--source.path", "runs/rl/model"],
        ["--task=dirl.tasks.Arithmetic", "--source="],
        ["--source", "--seed=1"],
    ],
)
def test_what_is_whole_stays_as_it_is(args: list[str]) -> None:
    assert long_names(args) == args


def test_a_folder_without_a_slash_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert long_names(["--source=model"]) == [PRETRAINED, "--source.path=model"]


def test_no_task_of_the_harness_is_an_error() -> None:
    with pytest.raises(ValueError, match="no task is named; write"):
        long_names(["--task=lm_eval:"])


def test_a_source_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said to name no class."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--source nope: there is no such folder or checkpoint here"):
        long_names(["--source", "nope"])
    assert long_names(["--source=NewModel"]) == ["--source=NewModel"]
