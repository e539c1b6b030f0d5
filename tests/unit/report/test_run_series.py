"""The code of the page of runs that needs no page, run by node: smoothing, axes, times, tables."""

import json
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

from dirl.report.curves import running_mean

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def js(expression: str) -> Any:
    """The value of a JavaScript expression, in which `t` are the functions."""
    place = json.dumps(str(files("dirl.report").joinpath("run_viewer", "series.js")))
    code = f"const t = require({place}); console.log(JSON.stringify({expression}))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_curves_are_smoothed_as_in_the_pictures() -> None:
    values = [((7 * k) % 11) / 3 for k in range(80)]
    assert js(f"t.smoothed({values}, 5)") == pytest.approx(running_mean(values, 5))
    assert js("[59, 60, 600].map(t.windowOf)") == [1, 5, 21]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 0.87, [0.2, 0.4, 0.6, 0.8, 1]),
        (-5, 5, [-6, -4, -2, 0, 2, 4, 6]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (2, 2, [1.8, 1.9, 2, 2.1, 2.2]),
        (1e-6, 3e-6, [1e-6, 1.5e-6, 2e-6, 2.5e-6, 3e-6]),
    ],
)
def test_axes_have_round_numbers_around_the_values(low: float, high: float, found: list[float]) -> None:
    ticks = js(f"t.ticks({low}, {high})")
    assert ticks[0] <= low and ticks[-1] >= high
    assert len(ticks) <= 8 and (low == 1e-6 or ticks == pytest.approx(found))


def test_numbers_of_an_axis_differ() -> None:
    assert js("t.tickTexts([0.73, 0.7305, 0.731])") == ["0.7300", "0.7305", "0.7310"]
    assert js("t.tickTexts([-1, 0, 1])") == ["−1", "0", "1"]
    assert js("t.tickTexts([0, 1e-7, 2e-7])") == ["0.0000000", "1.0e−7", "2.0e−7"]
    assert js("t.ticks(0, 320, 5, true).map(t.duration)") == ["0s", "2m 00s", "4m 00s", "6m 00s"]
    assert js("[59.6, 3725, 61].map(t.duration)") == ["1m 00s", "1h 02m", "1m 01s"]


def test_times_between_known_steps_lie_on_a_line() -> None:
    assert js("[0, 10, 15, 20, 99].map((step) => t.secondsAt([[10, 20], [100, 200]], step))") == [
        100,
        100,
        150,
        200,
        200,
    ]


def test_the_nearest_point_is_found() -> None:
    assert js("[-5, 1.4, 1.6, 4.9, 9].map((x) => t.nearest([0, 1, 2, 5], x))") == [0, 1, 2, 3, 3]
    assert js("t.nearest([3], 7)") == 0


def test_settings_that_are_not_the_same_are_named() -> None:
    assert js('t.differing([{a: "1", b: "2"}, {a: "1", b: "3", c: "4"}])') == ["b", "c"]


def test_the_best_evaluation_is_that_of_the_highest_accuracy() -> None:
    rows = [
        {"step": step, "eval/greedy/accuracy": accuracy, "eval/greedy/reward/a": step}
        for step, accuracy in ((0, 0.1), (5, 0.9), (9, 0.5))
    ]
    rows[1]["eval/drawn/accuracy"] = 0.2
    greedy, drawn = js(f"t.evaluated({json.dumps(rows)})")
    assert greedy["decoding"] == "greedy" and greedy["metrics"] == ["accuracy", "reward/a"]
    assert {name: row["step"] for name, row in greedy["columns"].items()} == {"first": 0, "best": 5, "last": 9}
    assert {row["step"] for row in drawn["columns"].values()} == {5}
    assert js("t.evaluated([])") == []
