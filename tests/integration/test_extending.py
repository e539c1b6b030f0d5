"""What docs/extending.md shows runs as it is written there."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from tests.integration.test_runs import fit, rl_args
from tests.integration.toy import metrics

from dirl.cli.main import main
from dirl.cli.plan import read_plan
from dirl.models import NewModel
from dirl.reading.prompts import PromptEncoder

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def code(name: str) -> str:
    """The block of Python that defines this class."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if f"\nclass {name}(" in block]
    return found


def yaml_of(key: str) -> str:
    """The block of YAML that sets this key."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(f"{key}:")]
    return found


@pytest.fixture
def module_of_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with all Python of the page, importable as the user's own."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_rules.py").write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    return "my_rules"


def test_an_objective_trains_by_its_class_path(tmp_path: Path, module_of_user: str) -> None:
    objective = f"--objective={module_of_user}.PartOfTheViews"
    whole = fit(tmp_path / "whole", *rl_args(tmp_path), objective, "--objective.share=1")
    half = fit(tmp_path / "half", *rl_args(tmp_path), objective, "--objective.share=0.5", "--data.passes=2")
    scored = [metrics(root, "train/scored_tokens") for root in (whole, half)]
    assert 0.3 < scored[1][0] / scored[0][0] < 0.7, "half of the views hold about half of the tokens"
    assert scored[1][:2] == scored[1][2:4], "every pass sees the same views"
    assert all(metrics(half, "train/gained"))
    assert len(code("PartOfTheViews").splitlines()) <= 45


def test_a_task_trains_by_its_class_path_with_its_rewards_and_is_evaluated(tmp_path: Path, module_of_user: str) -> None:
    overlay = tmp_path / "task.yaml"
    overlay.write_text(yaml_of("task").replace("my_tasks", module_of_user), encoding="utf-8")
    evaluate = "--evaluate={decoding: {greedy: {temperature: 0, max_response_tokens: 8}}, every_n_epochs: 1}"
    root = fit(tmp_path / "run", *rl_args(tmp_path), "--config", overlay, "--data.train=null", evaluate)
    assert metrics(root, "rollout/reward/accuracy") == [0, 0]
    assert len(metrics(root, "eval/greedy/accuracy")) >= 2
    assert len(code("CountLetters").split("class ")[1].splitlines()) <= 20


def test_sft_learns_a_task_that_has_conversations_and_evaluate_asks_it(
    tmp_path: Path, module_of_user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--config", PAGE.parents[1] / "configs" / "debug" / "sft.yaml", "--data.train=null")
    steps = ("--trainer.max_steps=2", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2")
    root = fit(tmp_path / "run", *args, f"--task={module_of_user}.CountLettersSolved", *steps)
    assert len(metrics(root, "val/nelbo_per_token")) == 1
    source = ("--source=dirl.models.PretrainedModel", f"--source.path={root / 'model'}")
    decoding = "--decoding={greedy: {temperature: 0, max_response_tokens: 8}}"
    main(["evaluate", *source, f"--task={module_of_user}.CountLettersSolved", "--task.letters=ae", decoding])
    assert "accuracy" in capsys.readouterr().out


def test_columns_of_a_task_beside_question_and_truth_reach_the_rewards(module_of_user: str) -> None:
    task = importlib.import_module(module_of_user).CountLetters(letters="ra")
    prompts = task.prompts("val", PromptEncoder(NewModel().describe(), max_tokens=100))
    assert [(p.ground_truth, p.info["letter"]) for p in prompts][:2] == [("1", "r"), ("2", "a")]


def test_the_plan_asks_an_objective_for_its_views(tmp_path: Path, module_of_user: str) -> None:
    args = [*map(str, rl_args(tmp_path)), "--memory=1GB", f"--objective={module_of_user}.PartOfTheViews"]
    whole, half = (read_plan([*args, f"--objective.share={share}"]) for share in (1, 0.5))
    assert half.noised.tokens == pytest.approx(whole.noised.tokens / 2)


def test_objectives_of_their_own_range_are_refused(tmp_path: Path, module_of_user: str) -> None:
    with pytest.raises(ValueError, match=r"objective\.share=0\.0: use a number"):
        fit(tmp_path / "run", *rl_args(tmp_path), f"--objective={module_of_user}.PartOfTheViews", "--objective.share=0")


def test_an_engine_makes_the_rollouts_of_a_run(tmp_path: Path, module_of_user: str) -> None:
    engine = f"--engine={module_of_user}.Dice"
    with pytest.raises(ValueError, match=r"^engine=Dice trains on samples of an older policy"):
        fit(tmp_path / "refused", *rl_args(tmp_path), engine)
    root = fit(tmp_path / "run", *rl_args(tmp_path), engine, "--objective.importance_cap=2")
    assert metrics(root, "rollout/stale_groups") == [0, 0], "it calls them of the last weights"
    assert all(1e-3 < mismatch < 1 for mismatch in metrics(root, "train/mismatch_abs")), "which they are not"
    assert "Dice says nothing of its memory" in " ".join(
        read_plan([*map(str, rl_args(tmp_path)), "--memory=1GB", engine]).notes
    )


def test_an_advantage_and_a_reward_train_by_their_class_paths(tmp_path: Path, module_of_user: str) -> None:
    args = [f"--rollout.advantage={module_of_user}.Rank", f"--rollout.rewards+={module_of_user}.Polite"]
    root = fit(tmp_path / "run", *rl_args(tmp_path), *args)
    assert metrics(root, "rollout/reward/polite") == [0, 0]
