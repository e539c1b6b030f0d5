"""What the page of a run is given: charts of whatever columns are there, short curves that keep their extremes."""

import json
from pathlib import Path

import pytest
from tests.unit.report.run_folders import rl_rows, sft_rows, write_start
from tests.unit.report.traced import HOSTILE, row

from dirl.report.run_charts import charts
from dirl.report.run_data import POINTS, run_data, thinned, write_report
from dirl.report.run_folder import read_run
from dirl.report.run_samples import EACH, EPOCHS, LONGEST, samples_of
from dirl.trajectory_files import write_trajectories


def test_every_column_is_on_one_chart_or_left_out_on_purpose() -> None:
    columns = ["rollout/reward", "rollout/reward/a", "rollout/reward/b", "eval/greedy/accuracy", "mine/new", "epoch"]
    made = charts([*columns, "train/lr", "train/value_lr", "share/push", "time/push_s"])
    found = {chart["title"]: [label for _, label in chart["columns"]] for chart in made}
    assert found == {
        "Reward": ["reward"],
        "Reward by part": ["a", "b"],
        "Accuracy at evaluations": ["greedy"],
        "Learning rate": ["lr", "value_lr"],
        "Seconds by phase": ["push"],
        "mine/new": ["mine/new"],
    }
    assert [chart["section"] for chart in made][-1] == "Further"


def test_a_single_part_of_a_reward_has_no_chart_of_its_own() -> None:
    assert [chart["title"] for chart in charts(["rollout/reward", "rollout/reward/exact"])] == ["Reward"]


def test_a_long_curve_keeps_its_ends_and_extremes() -> None:
    steps = list(range(100_000))
    values = [0.5] * 100_000
    values[777], values[88_888] = 9.0, -9.0
    kept_steps, kept = thinned((steps, values))
    assert len(kept) <= POINTS + 2 and kept_steps[0] == 0 and kept_steps[-1] == 99_999
    assert kept[kept_steps.index(777)] == 9.0 and kept[kept_steps.index(88_888)] == -9.0
    assert kept_steps == sorted(set(kept_steps))


def test_runs_are_put_together_by_stage(tmp_path: Path) -> None:
    write_start(tmp_path / "a" / "sft", sft_rows(), config={"model": {"class_path": "dirl.modules.SFTModule"}})
    write_start(tmp_path / "a" / "rl", rl_rows())
    write_start(tmp_path / "b" / "rl", rl_rows(6))
    data = run_data([read_run(tmp_path / name) for name in ("a/rl", "a/sft", "b/rl")])
    assert [(stage["kind"], stage["runs"]) for stage in data["stages"]] == [("SFT", [1]), ("RL", [0, 2])]
    assert [run["name"] for run in data["runs"]] == ["a/rl", "a/sft", "b/rl"], "as long as tells them apart"
    assert data["runs"][2]["facts"]["steps"] == "5" and data["runs"][2]["facts"]["epochs"] == "6"


def test_time_and_memory_are_summed_up_by_phase(tmp_path: Path) -> None:
    write_start(tmp_path, rl_rows())
    (run,) = run_data([read_run(tmp_path)])["runs"]
    assert run["phases"] == [
        {"phase": "train_step", "share": 0.5, "seconds": None, "longest": None},
        {"phase": "generate", "share": 0.4, "seconds": 2.0, "longest": 2.0},
        {"phase": "other", "share": 0.1, "seconds": None, "longest": None},
    ]
    assert run["memory"] == {"process_peak_gib": 1.5}


def kept(epoch: int, number: int, text: str = "text") -> str:
    return json.dumps(
        {"epoch": epoch, "step": epoch, "response": text, "question": "q", "ground_truth": None, "n": number}
    )


def test_samples_are_those_that_were_kept_of_the_last_start_of_an_epoch(tmp_path: Path) -> None:
    first = write_start(tmp_path, rl_rows())
    (first / "samples.jsonl").write_text("\n".join(kept(epoch, 1) for epoch in range(30)) + "\n" + '{"epoch": 30, "st')
    second = write_start(tmp_path, rl_rows(), 1, {"ckpt_path": "x"})
    (second / "samples.jsonl").write_text("\n".join(kept(29, 2, "x" * (LONGEST + 5)) for _ in range(9)) + "\n")
    rows = samples_of(read_run(tmp_path))["rows"]
    assert [r["epoch"] for r in rows] == [0, 4, 8, 12, 17, 21, 25, *[29] * EACH] and EPOCHS == 8
    assert {r["n"] for r in rows if r["epoch"] == 29} == {2}
    assert rows[-1]["response"].endswith("x … (5 characters more)")


def test_a_damaged_file_of_samples_is_named(tmp_path: Path) -> None:
    folder = write_start(tmp_path, rl_rows())
    (folder / "samples.jsonl").write_text("{}\n" + kept(1, 1) + "\n")
    with pytest.raises(ValueError, match=r"samples.jsonl:1: no sample: no object with an epoch"):
        samples_of(read_run(tmp_path))


def test_without_samples_saved_trajectories_with_texts_are_shown(tmp_path: Path) -> None:
    folder = write_start(tmp_path, rl_rows(), config={"rollout": {"save_trajectories": "made"}})
    for epoch in (0, 3):
        pairs = [row("a", 0), row("a", 1), row("b", 0, rewards={"exact": 1.0}, correct=True)]
        words = {trajectory.key: said for trajectory, said in pairs}
        path = tmp_path / "made" / f"epoch{epoch:04d}-rank0.jsonl"
        write_trajectories(path, [t for t, _ in pairs], lambda t, words=words: words[t.key])
    for root in (tmp_path, folder):
        rows = samples_of(read_run(root))["rows"]
        assert [(r["epoch"], r["prompt_id"]) for r in rows] == [(0, "a"), (0, "b"), (3, "a"), (3, "b")]
        assert rows[1]["correct"] and rows[1]["rewards"] == {"exact": 1.0}


def test_why_there_are_no_samples_is_said(tmp_path: Path) -> None:
    write_start(tmp_path, rl_rows(), config={"rollout": {"save_trajectories": "made"}})
    assert "add `samples: {}`" in samples_of(read_run(tmp_path))["note"]
    write_trajectories(tmp_path / "made" / "epoch0000-rank0.jsonl", [row()[0]])
    assert "set rollout.save_texts" in samples_of(read_run(tmp_path))["note"]
    write_start(tmp_path / "sft", sft_rows(), config={"model": {"class_path": "dirl.modules.SFTModule"}})
    assert samples_of(read_run(tmp_path / "sft"))["note"] is None


def test_what_a_run_holds_is_no_part_of_the_page(tmp_path: Path) -> None:
    hostile = {"step": 1, **{f"rollout/reward/{text}": 1.0 for text in HOSTILE}}
    folder = write_start(tmp_path, [hostile], config={"task": dict.fromkeys(HOSTILE, "</script><b>")})
    (folder / "samples.jsonl").write_text("\n".join(kept(1, 1, text) for text in HOSTILE))
    write_report([tmp_path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == 2 and page.count("</script") == 2 and "<b>" not in page
    assert "Content-Security-Policy" in page
