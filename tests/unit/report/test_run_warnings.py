"""Each warning comes when its threshold is crossed, says where, and does not come before."""

from pathlib import Path

import pytest
from tests.unit.report.run_folders import rl_rows, sft_rows, write_start

from dirl.report.run_folder import read_run
from dirl.report.run_warnings import RULES, Warned, warnings_of


def warned(root: Path, rows: list, evaluations: list | tuple = ()) -> list[Warned]:
    write_start(root, rows, evaluations=evaluations)
    return warnings_of(read_run(root))


@pytest.mark.parametrize("rows", [rl_rows(), sft_rows()], ids=["RL", "SFT"])
def test_a_run_that_goes_well_has_no_warning(tmp_path: Path, rows: list) -> None:
    assert (
        warned(tmp_path, rows, [{"step": 0, "eval/greedy/accuracy": 0.5}, {"step": 9, "eval/greedy/accuracy": 0.46}])
        == []
    )


def later(rows: list, name: str, value: float, of: int = 2) -> list:
    """With another value in the last rows."""
    return [*rows[:-of], *({**row, name: value} for row in rows[-of:])]


@pytest.mark.parametrize(
    ("rows", "name", "text"),
    [
        (later(rl_rows(), "rollout/accuracy", 0.1), "ACCURACY_FELL", "the best tenth had 0.67"),
        (later(rl_rows(), "train/entropy", 0.001), "ENTROPY_COLLAPSED", "fell from 0.5 to 0.001 nats"),
        (rl_rows(**{"rollout/dropped_uniform": 17.0}), "GROUPS_DROPPED", "204 of 396 groups (52%) were dropped"),
        (rl_rows(**{"rollout/uniform_groups": 9.0}), "GROUPS_DROPPED", "108 of 192 groups (56%) were learned from"),
        (rl_rows(**{"rollout/missing": 17.0}), "GROUPS_DROPPED", "204 of 396 wanted groups were not found"),
        (later(rl_rows(), "rollout/truncated", 0.3), "TRUNCATED", "rollout/truncated: the length limit ends 30%"),
        (later(rl_rows(), "train/skipped_steps", 2.0), "SKIPPED_STEPS", "2 optimizer steps were skipped"),
        (later(rl_rows(), "train/loss", float("nan")), "SKIPPED_STEPS", "train/loss was not finite 2 times"),
        (later(rl_rows(), "train/mismatch_abs", 0.2), "MISMATCH", "differ by 0.2 nats a token"),
        (later(rl_rows(), "train/clip_fraction", 0.4), "CLIP_FRACTION", "40% of the tokens are clipped"),
        (rl_rows(**{"rollout/reward/boxed": 1.0}), "REWARD_CONSTANT", "rollout/reward/boxed is 1 in every rollout"),
        (later(rl_rows(), "train/grad_norm", 99.0, 1), "GRAD_NORM_JUMPED", "was 99 at step 11, 50 times its median"),
        (rl_rows(**{"rollout/dropped_failed": 1.0}), "LOST_RESPONSES", "12 groups were dropped because a reward"),
        ([*sft_rows(), {"step": 12, "val/nelbo_per_token": 0.2}], "NELBO_ROSE", "it was 0.1 at step 9"),
    ],
)  # fmt: skip
def test_what_crosses_a_threshold_is_said_with_its_name(tmp_path: Path, rows: list, name: str, text: str) -> None:
    (found,) = warned(tmp_path, rows)
    assert found.name == name and text in found.text
    assert found.threshold == {rule: threshold for rule, threshold, _ in RULES}[name]


def test_an_accuracy_that_fell_is_said_by_decoding(tmp_path: Path) -> None:
    rows = [{"step": step, "eval/greedy/accuracy": a, "eval/drawn/accuracy": 0.5} for step, a in ((0, 0.9), (9, 0.8))]
    (found,) = warned(tmp_path, rl_rows(), rows)
    assert found.text == "eval/greedy/accuracy is 0.8 at the end; it was 0.9 at step 0"


def test_responses_that_no_reward_judged_are_said(tmp_path: Path) -> None:
    rows = [{"step": 0, "eval/greedy/lost": 3.0, "eval/greedy/responses": 7.0}]
    (found,) = warned(tmp_path, rl_rows(), rows)
    assert found.text == "eval/greedy/lost: 3 of 10 responses could not be judged, and count as wrong"


def test_the_trend_of_a_few_points_is_none(tmp_path: Path) -> None:
    assert warned(tmp_path, later(rl_rows(6), "train/entropy", 1e-9)) == []
