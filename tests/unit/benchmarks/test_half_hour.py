"""The half hour of GPU, as far as a CPU can show it: parts at toy size, time limits, what is kept of failed ones."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest
from benchmarks import half_hour, isolated, record
from benchmarks.half_hour_parts import TARGETS, Part
from benchmarks.isolated import run_isolated
from benchmarks.shapes import named_shape


@pytest.mark.parametrize("number", TARGETS)
def test_a_target_takes_less_than_nine_minutes_and_names_its_parts_once(number: int) -> None:
    """The last part may have what the others leave."""
    assert sum(part.limit for part in TARGETS[number][:-1]) <= half_hour.TARGET_SECONDS < 540
    names = [part.name for part in TARGETS[number]]
    assert len(set(names)) == len(names)


EVERY_PART = [pytest.param(part, id=part.name) for parts in TARGETS.values() for part in parts]


@pytest.mark.parametrize("part", EVERY_PART)
def test_what_a_gpu_is_asked_for_is_understood(part: Part) -> None:
    """The arguments of the real commands, which no dry run sees."""
    flag, name, *arguments = part.command(part.limit, dry_run=False)
    assert flag == "-m"
    if name == "pytest":
        files = [isolated.ROOT / word for word in arguments if word.startswith("tests/")]
        assert all(file.exists() for file in files)
        if "-k" in arguments:
            names = arguments[arguments.index("-k") + 1].replace("not ", "").split(" and ")
            assert all(f"def test_{name}" in files[0].read_text() for name in names)
        return
    options = importlib.import_module(name)._parser().parse_args(arguments)
    assert options.time_limit < part.limit
    for model in getattr(options, "models", None) or []:
        named_shape(model)
    for path in getattr(options, "engines", None) or []:
        module, kind = path.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), kind)


@pytest.mark.thorough
@pytest.mark.parametrize("number", TARGETS)
def test_the_dry_run_of_a_target_runs_every_part(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    half_hour.main([str(number), "--dry-run"])
    rows = json.loads((tmp_path / f"gpu-{number}.json").read_text())["rows"]
    assert [(row["part"], row["status"]) for row in rows] == [(part.name, "ok") for part in TARGETS[number]]
    assert all(row["found"] or "skipped" in row["cause"] for row in rows)
    assert not any("no summary:" in row["found"] for row in rows)


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
    lines = [f'..{record.ROW}{{"a": NaN}}', f'{record.ROW}{{"b": 2']
    assert isolated._rows(Path("nowhere"), lines) == [{"a": "NaN"}]


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
    half_hour.main(["1", "--dry-run", "--parts", "train-8b"])
    (row,) = json.loads((tmp_path / "gpu-1.json").read_text())["rows"]
    assert (row["status"], row["cause"]) == ("ok", "")
    assert {measured["recompute"] for measured in row["rows"]} == {"full"}
    assert "MFU" in capsys.readouterr().out
    assert (tmp_path / "gpu-1" / "train-8b" / "output.txt").exists()


def test_without_an_installation_the_package_is_laid_out_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated.importlib.util, "find_spec", lambda name: None)
    code = "import dirl, importlib.util as u; print(u.find_spec('dirl.callbacks').origin, dirl.__file__)"
    outcome = run_isolated(["-c", code], 60, tmp_path)
    assert outcome.status == "ok", outcome.last_lines
    callbacks, package = outcome.cause.split()
    assert Path(callbacks).resolve() == isolated.ROOT / "callbacks" / "__init__.py"
    assert Path(package).resolve() == isolated.ROOT / "src" / "dirl" / "__init__.py"


def test_checks_of_tests_gpu_are_shown_with_what_they_measured() -> None:
    parity = next(part for part in TARGETS[2] if part.name == "parity")
    rows = [
        {"check": "push", "seconds": 1.0, "push_s": 0.25},
        {"check": "parity", "broken": ["logprobs"], "chance": 0.5},
    ]
    assert parity.found(rows) == {"push:": "push s 0.25", "parity:": "BROKEN logprobs, by chance 0.5"}


def test_what_a_part_had_no_time_for_stands_in_the_table() -> None:
    lines = [
        "└───┘",
        "MFU: of the rate. Left out for lack of time: sdar-8b policy",
        "16384, sdar-8b sft 16384.  ",
        "written to x",
    ]
    assert half_hour._left_out(lines) == "Left out for lack of time: sdar-8b policy 16384, sdar-8b sft 16384."
    assert half_hour._left_out(["└───┘", "written to x"]) == ""
