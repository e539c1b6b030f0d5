"""Rollouts made while the trainer works, and runs whose engines are lost."""

from pathlib import Path

import pytest
from tests.integration.engines import PatientEngine
from tests.integration.test_runs import assert_same, fit, rl_args, weights
from tests.integration.toy import metrics

from dirl.rollout.engine import EnginesLostError
from dirl.trajectory_files import read_trajectories

CAP = "--objective.init_args.importance_cap=2"


def with_engine(tmp_path: Path, name: str, **init_args: object) -> list[object]:
    """A further config that changes the engine of the overlay."""
    text = (tmp_path / "overlay.yaml").read_text()
    assert "{class_path: dirl.rollout.TorchEngine}" in text
    engine = f"{{class_path: {name}, init_args: {init_args}}}"
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.replace("{class_path: dirl.rollout.TorchEngine}", engine))
    return ["--config", path]


def test_the_next_rollout_is_made_while_the_trainer_works_at_most_one_version_old(tmp_path: Path) -> None:
    saved = tmp_path / "trajectories"
    args = [*rl_args(tmp_path, rollout=f"        save_trajectories: {saved}\n        overlap: true"), CAP]
    engine = with_engine(tmp_path, "tests.integration.engines.PatientEngine")
    teller = tmp_path / "teller.yaml"
    teller.write_text("trainer:\n  callbacks+:\n    - class_path: tests.integration.engines.TellOfSteps\n")
    PatientEngine.step_made.clear()
    root = fit(tmp_path / "run", *args, *engine, "--config", teller, "--trainer.max_epochs=3")
    versions = [
        {t.policy_version for t in read_trajectories(saved / f"epoch{epoch:04d}-rank0.jsonl")} for epoch in range(3)
    ]
    assert versions == [{0}, {0}, {2}], "two optimizer steps an epoch; each rollout has the weights of the one before"
    assert metrics(root, "rollout/staleness") == [0, 2, 2]
    assert metrics(root, "rollout/stale_groups") == [0, 4, 4]


def test_an_overlapped_run_learns_what_its_trajectories_teach(tmp_path: Path) -> None:
    saved = tmp_path / "trajectories"
    args = [*rl_args(tmp_path, rollout=f"        save_trajectories: {saved}\n        overlap: true"), CAP]
    first = fit(tmp_path / "first", *args, "--trainer.max_epochs=3")
    everything = tmp_path / "all.jsonl"
    everything.write_text("".join(path.read_text() for path in sorted(saved.iterdir())))
    args = [*rl_args(tmp_path), CAP, *with_engine(tmp_path, "dirl.rollout.ReplayEngine", path=str(everything))]
    second = fit(tmp_path / "second", *args, "--trainer.max_epochs=3")
    assert_same(weights(first), weights(second))


def test_an_overlapped_run_resumes_without_losing_a_prompt(tmp_path: Path) -> None:
    saved = tmp_path / "trajectories"
    args = [*rl_args(tmp_path, rollout=f"        save_trajectories: {saved}\n        overlap: true"), CAP]
    whole = fit(tmp_path / "whole", *args, "--trainer.max_epochs=3")
    prompts = [{t.prompt_id for t in read_trajectories(path)} for path in sorted(saved.iterdir())]
    checkpoint = whole / "logs" / "version_0" / "checkpoints" / "step=3.ckpt"
    fit(tmp_path / "resumed", *args, "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}")
    again = [{t.prompt_id for t in read_trajectories(path)} for path in sorted(saved.iterdir())]
    assert again == prompts


def test_overlap_without_the_importance_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="importance_cap"):
        fit(tmp_path / "run", *rl_args(tmp_path, rollout="        overlap: true"))


def test_overlap_with_a_sleeping_engine_is_refused(tmp_path: Path) -> None:
    args = [*rl_args(tmp_path, rollout="        overlap: true"), CAP]
    with pytest.raises(ValueError, match="sleep"):
        fit(tmp_path / "run", *args, *with_engine(tmp_path, "dirl.rollout.LMDeployEngine", sleep=True))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("lost_at", [0, 1])
def test_a_run_whose_engines_are_lost_goes_on_from_its_checkpoint(tmp_path: Path, lost_at: int, overlap: bool) -> None:
    option = f"        overlap: {str(overlap).lower()}"
    args = [*rl_args(tmp_path, rollout=option), CAP]
    broken = with_engine(tmp_path, "tests.integration.engines.LostEngine", lost_at=lost_at)
    with pytest.raises(EnginesLostError, match=r"every server is gone\nNothing is lost: go on with --ckpt_path"):
        fit(tmp_path / "broken", *args, *broken)
    checkpoint = tmp_path / "broken" / "engines_lost.ckpt"
    resumed = fit(tmp_path / "resumed", *args, f"--ckpt_path={checkpoint}")
    assert metrics(resumed, "step")[-1] == 3
    if not overlap:  # with overlap, what was to be made with older weights is made with the present ones
        assert_same(weights(fit(tmp_path / "whole", *args)), weights(resumed))
