"""Tables of results: layout, means, escaping."""

import csv
import io
from dataclasses import asdict

import pytest

from dirl.evaluation.formats import cells, columns, comma_separated, made_with, markdown, page
from dirl.evaluation.results import Result
from dirl.evaluation.tables import compare, pairs
from dirl.types import DecodingParams


def result(model: str, task: str, accuracy: float, decoding: str = "static", digest: str = "") -> Result:
    settings = {
        "decoding": asdict(DecodingParams(top_k=50)),
        "samples": 3,
        "seed": 0,
        "prompts": {"count": 9, "digest": digest or task},
        "task": {"class": "T", "prompt_template": "{question} <b>"},
        "rewards": [{"class": "dirl.rewards.Accuracy"}],
        "versions": {"dirl": "1", "torch": "2", "transformers": "3"},
    }
    metrics = {"accuracy": accuracy, "accuracy/low": accuracy - 0.1, "accuracy/high": accuracy + 0.1}
    metrics |= {"tokens_per_step": 2.0, "response_length": 812.4}
    starts = [{"engine": "TorchEngine", "dtype": "float32", "device": "cpu", "commit": None}]
    return Result(model, task, decoding, 4, metrics, settings, starts, 9, "problems/x.jsonl", [], [])


RESULTS = [result("a|b", "gsm8k", 0.9), result("a|b", "aime", 0.2), result("<i>c</i>", "gsm8k", 0.5)]
NAMES = [r.model for r in RESULTS]


def test_a_row_has_accuracy_speed_and_length_of_each_task_and_their_mean() -> None:
    table = compare(RESULTS, NAMES)
    assert columns(table)[2:5] == ["gsm8k (avg@3) accuracy", "gsm8k (avg@3) tokens/step", "gsm8k (avg@3) length"]
    first, second = cells(table)
    assert first[2:] == ["90.0 [80.0, 100.0]", "2.00", "812", "20.0 [10.0, 30.0]", "2.00", "812", "55.0", "2.00", "812"]
    assert second[5:] == [""] * 6, "no mean of a part of the tasks"


def test_names_are_escaped() -> None:
    table, made = compare(RESULTS, NAMES), made_with(RESULTS, NAMES)
    text = page(table, [], made)
    assert "<i>c</i>" not in text and "&lt;i&gt;c&lt;/i&gt;" in text and "{question} <b>" not in text
    assert r"| a\|b | static |" in markdown(table, [], made)


def test_csv_has_a_line_for_each_metric_with_its_interval() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(RESULTS, NAMES))))
    assert [row["metric"] for row in rows[:3]] == ["accuracy", "tokens_per_step", "response_length"]
    assert (rows[0]["model"], float(rows[0]["high"]), rows[1]["high"]) == ("a|b", 1.0, "")


def test_it_is_said_how_each_number_came_about() -> None:
    (line, *_) = made_with(RESULTS, NAMES)
    for text in ("9 problems x 3", "top_k 50", "at 0.9", "TorchEngine in float32 on cpu", "commit unknown", "seed 0"):
        assert text in line


def test_what_stands_twice_or_is_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match="a, static on gsm8k is there twice"):
        compare([RESULTS[0]] * 2, ["a", "a"])
    with pytest.raises(ValueError, match="no such file, though the results name it"):
        compare([RESULTS[0], result("d", "gsm8k", 0.1, digest="other")], ["a", "d"])


def test_three_models_are_not_paired() -> None:
    assert pairs(RESULTS, ["a", "b", "c"]) == []
