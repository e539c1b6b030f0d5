"""One message, the exit code that belongs to it, and a traceback only of our own errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from dirl.cli import errors as cli_errors
from dirl.cli import main as cli
from dirl.cli.errors import entry, resume_line, shorten, with_nearest, without_option
from dirl.errors import saved
from dirl.rewards import Reward
from dirl.stopping import Stopped


def raising(error: BaseException, module: str = "dirl") -> object:
    """What raises an error in a file of this package, or in one of another."""
    code = compile("def run(args):\n    raise error", f"/site-packages/{module}/x.py", "exec")
    scope: dict = {"error": error}
    exec(code, scope)
    return scope["run"]


@pytest.mark.parametrize(
    ("error", "module", "traceback"),
    [
        (ValueError("data.limit=0: use at least 1"), "dirl", False),
        (ValueError("too many values to unpack"), "torch", True),
        (TypeError("NoneType has no attribute"), "dirl", True),
        (FileNotFoundError(2, "No such file", "x.jsonl"), "torch", False),
        (AssertionError(), "dirl", True),
    ],
)
def test_a_traceback_is_for_our_own_errors(
    error: Exception, module: str, traceback: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "main", raising(error, module))
    assert entry(["fit"]) == 1
    said = capsys.readouterr().err
    assert ("Traceback" in said) == traceback
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert entry(["fit", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_stop_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(cli, "main", raising(saved(Stopped(15), Path("out/a b/stopped.ckpt"))))
    assert entry(["fit", "--config", "c.yaml", "--ckpt_path", "last", "--x=1"]) == 143
    assert capsys.readouterr().err.splitlines() == [
        "stopped by SIGTERM",
        "go on with: lightning run fit --config c.yaml --x=1 --ckpt_path 'out/a b/stopped.ckpt'",
    ]


def test_without_a_checkpoint_nothing_is_said_of_going_on() -> None:
    assert resume_line(Stopped(2), ["fit"]) is None
    assert resume_line(saved(Stopped(2), Path("x")), ["demo"]) is None
    assert without_option(["--ckpt_path=a", "b", "--ckpt_path", "c", "d"], "--ckpt_path") == ["b", "d"]


def test_memory_that_ran_out_has_a_remedy() -> None:
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    assert cli_errors.is_users(error)
    assert "Lower data.token_budget" in cli_errors.message_of(error)


def test_reports_of_the_parser_are_one_line() -> None:
    report = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'dirl.modules.base.BlockDiffusionModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'dirl.modules.RLModule':
        Parser key "decoding.temperature":
          Expected a <class 'float'>. Got value: hot
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='decoding.temperature', val='hot')"""
    assert shorten(report) == (
        "model.init_args.decoding.temperature: dirl.modules.RLModule: Expected a float. Got value: hot"
    )
    assert with_nearest("unrecognized arguments: --trainer.max_epoch=3", ["--trainer.max_epochs"]) == (
        "unrecognized arguments: --trainer.max_epoch=3 (nearest: --trainer.max_epochs)"
    )


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["nope"], 2, "error: 'nope' is no command of dirl. The commands are fit, "),
        (["evalute"], 2, "error: 'evalute' is no command of dirl. Did you mean evaluate? "),
        (["demo", "--task", "x"], 2, "error: task: Expected a Literal['arithmetic', 'countdown', 'sudoku']. Got value"),
        (["demo", "--taks", "x"], 2, "error: unrecognized arguments: --taks x (nearest: --task)"),
        (["fit", "--trainer.max_epoch=1"], 2, "error: unrecognized arguments: --trainer.max_epoch=1 (nearest: --tr"),
        (["fit", "--config=nope.yaml"], 2, "error: config: File does not exist: "),
        (["configs", "--folder=src"], 1, "error: folder='src' exists already"),
    ],
)
def test_what_the_command_line_says_of_mistakes(
    args: list[str], code: int, said: str, capsys: pytest.CaptureFixture
) -> None:
    assert entry(args) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(said)
    assert len(lines) == 1


def test_the_version_is_said(capsys: pytest.CaptureFixture) -> None:
    assert entry(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dirl 0.")


def test_a_class_of_a_user_that_lacks_a_method_is_told_which() -> None:
    """It was said to be a kind of class, of which one is to be named."""
    said = shorten(f"Expected an instantiatable class, but {__name__}.Lacking is abstract")
    assert said == f"{__name__}.Lacking does not define __call__, which each of its kind has to"
    kind = shorten("Expected an instantiatable class, but dirl.rewards.Reward is abstract")
    assert kind.startswith("dirl.rewards.Reward is a kind of class")


def test_colons_without_a_blank_are_told_of() -> None:
    said = shorten("Expected a <class 'dict'>\nGiven value: {greedy:{temperature:0}}")
    assert said == "Expected a dict; given: {greedy:{temperature:0}}; YAML wants a blank after each colon"
    assert "blank" not in shorten("Expected a <class 'dict'>\nGiven value: {'greedy': 0}")


class Lacking(Reward):
    judges = True


def test_a_full_disk_has_a_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(cli, "main", raising(OSError(28, "No space left on device"), "torch"))
    assert entry(["rollout"]) == 1
    assert "No space left on device: the disk that the command writes to is full" in capsys.readouterr().err


def test_python_runs_the_package() -> None:
    said = subprocess.run([sys.executable, "-m", "dirl", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("dirl ")
