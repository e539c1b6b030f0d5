"""The page of training runs in a browser: what it draws and says, by pointer and by keys, and what it does not obey."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chromium import PROGRAM, Chromium
from tests.unit.report.run_folders import rl_rows, sft_rows, write_start
from tests.unit.report.test_wall_times import write_events
from tests.unit.report.traced import HOSTILE

from dirl.report.run_data import write_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
TIP = "document.getElementById('tip').textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as chromium:
        yield chromium


def texts(browser: Chromium, selector: str) -> list[str]:
    return browser.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


def shown(browser: Chromium, *runs: Path) -> None:
    page = runs[0] / "report.html"
    write_report(runs, page)
    browser.open(page)


def test_a_run_of_each_stage_has_its_sections(browser: Chromium, tmp_path: Path) -> None:
    write_start(tmp_path / "sft", sft_rows(), config={"model": {"class_path": "dirl.modules.SFTModule"}})
    evaluations = [{"step": step, "eval/greedy/accuracy": value} for step, value in ((0, 0.5), (6, 0.9), (11, 0.8))]
    folder = write_start(tmp_path / "rl", rl_rows(), evaluations=evaluations)
    sample = {"epoch": 0, "step": 0, "question": "1+1?", "response": "it\tis 2", "ground_truth": "2", "reward": 1.0}
    sample |= {"rewards": {"exact": 1.0}, "correct": True, "response_length": 5, "finish_reason": "stop"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    shown(browser, tmp_path / "sft", tmp_path / "rl")
    names = ["Runs", "Warnings", "SFT: Curves", "SFT: Time and memory", "RL: Evaluations", "RL: Curves"]
    assert (
        texts(browser, "nav a") == texts(browser, "main h2") == [*names, "RL: Time and memory", "RL: Samples", "Config"]
    )
    assert texts(browser, ".warnings li") == [
        "rl: eval/greedy/accuracy is 0.8 at the end; it was 0.9 at step 6 ACCURACY_FELL = 0.05"
    ]
    assert texts(browser, "#rl-evaluations th") == ["metric", "first (step 0)", "best (step 6)", "last (step 11)"]
    assert texts(browser, ".sample .said") == ["1+1?", "it→is 2"]
    assert browser.value("document.querySelectorAll('#rl-curves .plot').length") == 13
    assert browser.errors == []


def test_the_arrows_go_through_the_points_of_a_chart(browser: Chromium, tmp_path: Path) -> None:
    write_start(tmp_path, rl_rows())
    shown(browser, tmp_path)
    browser.value("document.querySelector('.plot').focus()")
    browser.press("ArrowRight")
    assert browser.value(TIP) == "step 0\nreward: 0.4"
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.value(TIP) == "step 2\nreward: 0.46"
    browser.press("End")
    assert browser.value(TIP) == "step 11\nreward: 0.73"
    browser.press("ArrowLeft", shift=True)
    assert browser.value(TIP) == "step 1\nreward: 0.43"
    browser.press("Escape")
    assert browser.value("document.getElementById('tip').hidden")
    assert browser.errors == []


def test_the_pointer_shows_the_nearest_values(browser: Chromium, tmp_path: Path) -> None:
    write_start(tmp_path, rl_rows())
    shown(browser, tmp_path)
    box = browser.value("(({left, top, width, height}) => [left, top, width, height])"
                        "(document.querySelector('.plot svg').getBoundingClientRect())")  # fmt: skip
    browser.move(box[0] + 0.975 * box[2], box[1] + box[3] / 2)
    assert browser.value(TIP) == "step 11\nreward: 0.73"


def test_long_curves_are_smoothed_until_told_otherwise(browser: Chromium, tmp_path: Path) -> None:
    write_start(tmp_path, rl_rows(200))
    shown(browser, tmp_path)
    raw = "document.querySelectorAll('.curve.raw').length"
    assert browser.value(raw) > 0
    browser.press("s")
    assert browser.value(raw) == 0
    assert browser.value("document.getElementById('smooth').getAttribute('aria-pressed')") == "false"


def test_curves_lie_over_time_where_it_is_known(browser: Chromium, tmp_path: Path) -> None:
    folder = write_start(tmp_path, rl_rows())
    shown(browser, tmp_path)
    assert browser.value("document.querySelector('#axis [data-value=time]').disabled")
    browser.press("x")
    assert browser.value("page.axis") == "step"
    write_events(folder, {step: 60.0 * step for step in range(1, 12)})
    shown(browser, tmp_path)
    browser.press("x")
    browser.value("document.querySelector('.plot').focus()")
    browser.press("End")
    assert browser.value(TIP).startswith("11m 00s (step 11)\nreward: 0.73")
    assert browser.errors == []


def test_several_runs_lie_on_one_another(browser: Chromium, tmp_path: Path) -> None:
    write_start(tmp_path / "a", rl_rows())
    write_start(tmp_path / "b", rl_rows(8, **{"train/kl": 0.1}), config={"seed_everything": 7})
    shown(browser, tmp_path / "a", tmp_path / "b")
    assert browser.value("document.querySelectorAll('.plot')[0].querySelectorAll('polyline').length") == 2
    browser.value("document.querySelector('.plot').focus()")
    browser.press("Home")
    assert browser.value(TIP) == "step 0\na: 0.4\nb: 0.4"
    assert texts(browser, "#config details:nth-of-type(1) td") == ["seed_everything", "0", "7"]
    last = texts(browser, "#rl-curves details td")
    place = last.index("rollout/reward")
    assert last[place : place + 3] == ["rollout/reward", "0.73", "0.61"]
    place = last.index("train/kl")
    assert last[place + 1].strip() == "" and last[place + 2] == "0.1"


def test_nothing_of_a_run_is_obeyed(browser: Chromium, tmp_path: Path) -> None:
    rows = [
        {"step": step, **{f"rollout/reward/{text}": 0.1 * step for text in HOSTILE}, "toString": 1} for step in (1, 2)
    ]
    folder = write_start(tmp_path / "<b>run", rows, config={"task": dict.fromkeys(HOSTILE, "<img src=x>")})
    other = write_start(tmp_path / "__proto__", rl_rows())
    sample = {"epoch": 0, "rewards": {HOSTILE[0]: 1.0, "__proto__": 2.0}, "correct": None, "response_length": 1}
    lines = [{**sample, "question": text, "response": text, "ground_truth": text, "reward": 0} for text in HOSTILE[:4]]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown(browser, folder.parents[1], other.parents[1])
    assert browser.value("document.title") == "<b>run, __proto__ · run report"
    assert browser.value("document.querySelectorAll('img, main script, main b, main iframe').length") == 0
    assert texts(browser, ".sample .said")[:2] == [HOSTILE[0], HOSTILE[0]]
    assert "U+202Egnp.exeU+202C" in texts(browser, ".sample .said")
    browser.value("document.body.append(Object.assign(document.createElement('script'), {text: 'owned = 1'}))")
    assert browser.value("typeof owned") == "undefined"
    assert all("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()


def test_the_theme_is_the_systems_until_one_chooses(browser: Chromium, tmp_path: Path) -> None:
    write_start(tmp_path, rl_rows())
    theme = "document.documentElement.dataset.theme"
    for wanted in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": wanted}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        shown(browser, tmp_path)
        assert browser.value(theme) == wanted
    browser.press("t")
    assert browser.value(theme) == "dark"
