"""The command `report`: which folders it takes, where its page goes, what it says."""

import re
from pathlib import Path

import pytest
from tests.unit.report.run_folders import rl_rows, write_start

from dirl.cli.errors import entry


def test_a_page_of_one_run_lies_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_start(tmp_path / "run", rl_rows())
    assert entry(["report", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"runs: 1, starts: 1, written to .*run/report\.html \(0\.\d MB\)\n", said)
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    assert entry(["report", str(tmp_path / "run")]) == 1
    assert "exists already: name another place, or add --overwrite=true" in capsys.readouterr().err
    assert entry(["report", str(tmp_path / "run"), "--overwrite=true"]) == 0


def test_several_runs_are_named_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a", "b"):
        write_start(tmp_path / name, rl_rows())
    write_start(tmp_path / "b", rl_rows(), 1)
    page = tmp_path / "new" / "both.html"
    assert entry(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/b: version_0 are of other runs" in said and "runs: 2, starts: 2" in said
    assert page.is_file()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the following arguments are required: runs"),
        (["nowhere"], "run='nowhere': no such folder"),
        (["empty"], "so this is no run"),
        (["run", "./run"], "one is named twice"),
        (["run", "--outptu=x"], "unrecognized arguments: --outptu=x"),
    ],
)
def test_what_is_no_run_is_one_message(
    names: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_start(tmp_path / "run", rl_rows())
    (tmp_path / "empty").mkdir()
    assert entry(["report", *names]) != 0
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.count("\n") == 1
    assert not list(tmp_path.glob("**/*.html"))
