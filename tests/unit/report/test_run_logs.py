"""What is read from the folder of a run."""

import json

from dirl.report.run_logs import before_and_after, columns, newest


def write(root, version, name, text):
    path = root / "logs" / f"version_{version}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_latest_run_of_a_folder_counts(tmp_path):
    for version in (2, 10, 9):
        write(tmp_path, version, "metrics.csv", "")
    assert newest(tmp_path, "metrics.csv").parent.name == "version_10"


def test_columns_are_renamed_and_empty_cells_left_out(tmp_path):
    write(tmp_path, 0, "metrics.csv", "step,train/loss,other\n1,0.5,2\n2,,3\n")
    assert columns(tmp_path, {"train/loss": "loss"}) == [{"loss": 0.5, "step": 1.0}, {"step": 2.0}]


def test_the_first_and_the_last_evaluation_are_told_apart_by_decoding(tmp_path):
    rows = [{"step": step, "eval/greedy/accuracy": step / 10, "eval/sampled/accuracy": step / 5} for step in (0, 1, 2)]
    write(tmp_path, 0, "evaluation.json", json.dumps(rows))
    results = before_and_after(tmp_path)
    assert list(results) == ["sampled, before RL", "sampled, after RL", "greedy, before RL", "greedy, after RL"]
    assert results["greedy, after RL"] == {"accuracy": 0.2} and results["sampled, before RL"] == {"accuracy": 0.0}
