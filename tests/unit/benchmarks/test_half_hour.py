"""The half hour of GPU, as far as a CPU can show it: parts at toy size, time limits, what is kept of failed ones."""

import json
import os
import time
from pathlib import Path

import pytest
from benchmarks import half_hour, isolated, record
from benchmarks.half_hour_parts import TARGETS, Part
from benchmarks.isolated import run_isolated


@pytest.mark.parametrize("number", TARGETS)
def test_a_target_takes_less_than_nine_minutes_and_names_its_parts_once(number: int) -> None:
    assert sum(part.limit for part in TARGETS[number]) <= half_hour.TARGET_SECONDS < 540
    names = [part.name for part in TARGETS[number]]
    assert len(set(names)) == len(names)


def test_a_command_that_fails_leaves_what_it_printed_and_measured(tmp_path: Path) -> None:
    outcome = run_isolated(
        ["-c", f"print('{record.ROW}{{\"a\": 1}}'); print('halfway'); raise OSError('gone')"], 60, tmp_path
    )
    assert (outcome.status, outcome.cause, outcome.rows) == ("failed", "OSError: gone", [{"a": 1}])
    assert "halfway" in outcome.last_lines
    assert "Traceback" in (tmp_path / "output.txt").read_text()


def test_a_command_is_ended_at_its_limit_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid)\n"
        f"print('{record.ROW}{{\"a\": 1}}')\n"
        "print('compiling')\n"
        "time.sleep(600)"
    )
    started = time.monotonic()
    outcome = run_isolated(["-c", code], 3, tmp_path)
    assert time.monotonic() - started < 20
    assert (outcome.status, outcome.cause, outcome.rows) == ("stopped", "compiling", [{"a": 1}])
    child = int(next(line for line in outcome.last_lines if line.startswith("child")).split()[1])
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """A process that ended and that nobody has asked after does not run."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except ProcessLookupError:
        return False


def test_results_from_before_are_not_taken_for_those_of_a_failed_command(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"rows": [{"a": 1}]}')
    assert run_isolated(["-c", "raise SystemExit(3)"], 60, tmp_path).rows == []


def test_a_row_cut_off_in_the_middle_is_left_out() -> None:
    assert isolated._rows(Path("nowhere"), [f'{record.ROW}{{"a": NaN}}', f'{record.ROW}{{"b": 2']) == [{"a": "NaN"}]


def test_parts_that_fail_or_are_not_here_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "good.py"
    script.write_text("print('row: {\"rate\": 7.0}')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    parts = (
        Part("broken", ("no_such_module_here",), 30, lambda rows: {}, timed=False),
        Part("absent", ("good",), 30, lambda rows: {}, needs="no_such_module_here"),
        Part("good", ("good",), 30, lambda rows: dict(rows[0]), timed=False),
        Part("puzzling", ("good",), 30, lambda rows: {"x": rows[0]["y"]}, timed=False),
    )
    monkeypatch.setitem(TARGETS, 1, parts)
    monkeypatch.setattr(half_hour, "pick_device", lambda _: "cpu")
    with pytest.raises(SystemExit, match="1"):
        half_hour.main(["1"])
    written = json.loads((tmp_path / "out" / "gpu-1.json").read_text())
    assert [(row["part"], row["status"]) for row in written["rows"]] == [
        ("broken", "failed"),
        ("absent", "not here"),
        ("good", "ok"),
        ("puzzling", "ok"),
    ]
    assert written["rows"][2]["found"] == {"rate": 7.0}
    assert written["environment"]["versions"]["torch"]
    printed = capsys.readouterr().out
    for said in ("No module named no_such_module_here", "needs no_such_module_here", "rate 7", "no summary: KeyError"):
        assert said in " ".join(printed.split())


def test_a_part_without_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        half_hour.main(["1", "--dry-run", "--parts", "rates", "--time-limit", "1"])
    (row,) = json.loads((tmp_path / "gpu-1.json").read_text())["rows"]
    assert (row["status"], row["cause"]) == ("left out", "no time was left")


def test_a_dry_run_of_a_part_from_the_command_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    half_hour.main(["1", "--dry-run", "--parts", "train-sdar-8b"])
    (row,) = json.loads((tmp_path / "gpu-1.json").read_text())["rows"]
    assert (row["status"], row["cause"]) == ("ok", "")
    assert {measured["recompute"] for measured in row["rows"]} == {"full"}
    assert "MFU" in capsys.readouterr().out
    assert (tmp_path / "gpu-1" / "train-sdar-8b" / "output.txt").exists()
