"""What is answered before anything large is imported: help, and errors that a look at the arguments finds."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dirl.callbacks import Checkpoint, Rollout
from jsonargparse import ArgumentParser

from dirl.cli import help as texts
from dirl.cli import main
from dirl.cli.early import check_names, is_known, option_names
from dirl.cli.signatures import MissingError, parameters
from dirl.cli.table import FUNCTIONS, NAMES, function
from dirl.cli.text import UsageError
from dirl.data.rl import RLDataModule
from dirl.models import NewModel
from dirl.modules import RLModule
from dirl.objectives import Coupled, DiPO, StableDRL, TraceRL
from dirl.rollout import ServerEngine

ROOT = Path(__file__).parents[3]
LARGE = ("torch", "lightning", "transformers", "datasets", "omegaconf")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts made now, by a process that knows no classes of tests."""
    folder = tmp_path_factory.mktemp("help")
    subprocess.run([sys.executable, "-m", "dirl.cli.help", str(folder)], check=True, cwd=ROOT)
    return folder


@pytest.mark.parametrize("topic", texts.TOPICS)
def test_a_shipped_help_text_is_what_its_parser_prints(topic: str, made: Path) -> None:
    """`make help-texts` writes them anew."""
    assert (texts.FOLDER / f"{topic}.txt").read_text() == (made / f"{topic}.txt").read_text()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_overview_says_what_a_command_says_of_itself(name: str) -> None:
    assert FUNCTIONS[name].about == function(name).__doc__.splitlines()[0]


def test_every_command_has_its_help() -> None:
    assert set(NAMES) <= texts.TOPICS.keys()


def test_with_other_versions_the_parsers_are_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text in texts.FOLDER.glob("*.txt"):
        (tmp_path / text.name).write_text(text.read_text().replace("lightning==", "lightning==0."))
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    texts.text_of.cache_clear()
    try:
        assert texts.shipped(["fit", "--help"]) is None
        assert option_names("fit") == frozenset()
        check_names("fit", ["--trainer.max_stps=3"])
    finally:
        texts.text_of.cache_clear()


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["fit", "--help"],
        ["serve", "-h"],
        ["fit", "--rollout.help"],
        ["fitt"],
        ["fit", "--config", "nowhere.yaml"],
        ["fit", "--trainer.max_stps=3"],
        ["fit", "--model.init_args.loss.kl_coef=1"],
        ["fit", "--engine", "dirl.rollout.Torch"],
    ],
    ids=" ".join,
)
def test_nothing_large_is_imported_for_it(args: list[str]) -> None:
    code = (
        "import sys; from dirl.cli.errors import entry; entry(sys.argv[1:]); "
        f"found = [name for name in {LARGE} if name in sys.modules]; print('LARGE', found)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "LARGE []" in done.stdout, done


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainr: {max_steps: 1}", r"own.yaml: unknown option trainr \(nearest: trainer\)"),
        ("trainer: {max_stps: 1}", r"own.yaml: unknown option trainer.max_stps \(nearest: trainer.max_steps\)"),
        ("rollout: {dynamic_samplin: 1}", r"unknown option rollout.dynamic_samplin \(nearest: rollout.dynamic_"),
        ("trainer: {max_steps: 1", "own.yaml, line 2: no YAML: "),
    ],
)
def test_what_a_config_cannot_have_is_an_error_that_names_the_file(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(UsageError):
        check_names("fit", ["--config", str(path)])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}") and re.search(message, said)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_has_options_of_its_command_alone(path: Path) -> None:
    commands = {"eval.yaml": "evaluate", "evaluation": "evaluate", "serve.yaml": "serve"}
    command = commands.get(path.name) or commands.get(path.parent.name, "fit")
    check_names(command, [f"--config={path}"])


def test_a_config_may_take_in_another_mapping_and_come_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("trainer: {<<: &a {max_epochs: 1}, log_every_n_steps: 1}\nexport: {<<: [{folder: x}]}\n")
    check_names("fit", ["--config", str(path)])
    path.write_text("trainer: {<<: {max_epoch: 1}}\n")
    with pytest.raises(UsageError):
        check_names("fit", ["--config", str(path)])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_names("fit", ["--config", str(pipe)])  # it is not read: that would wait for ever


def test_below_a_class_anything_may_follow() -> None:
    known = option_names("fit")
    assert is_known("model.init_args.anything.else", known)
    assert is_known("trainer.callbacks", known) and is_known("trainer", known)
    assert not is_known("trainer.max_steps.deeper.and_deeper", frozenset({"trainer.a", "trainer.a.b"}))


WRONG_CLASSES = [
    ("engine: {class_path: dirl.rollout.Torch}", "engine: dirl.rollout.Torch: module 'dirl.rollout' has no attribute"),
    (
        "engine: {class_path: dirl.rollout.ServerEngine, init_args: {ulrs: []}}",
        "engine: dirl.rollout.ServerEngine takes no 'ulrs' (nearest: urls)",
    ),
    (
        "rollout: {rewards: [{class_path: dirl.rewards.Boxed, init_args: {x: 1}}]}",
        "rollout.rewards[0]: dirl.rewards.Boxed takes no 'x'",
    ),
    (
        "objective: {class_path: dirl.objectives.BlockELBO, init_args: {shrink: 1}}",
        "objective: dirl.objectives.BlockELBO takes no 'shrink'; it is an option of TraceRL",
    ),
    (
        "model: {class_path: dirl.modules.RLModule, init_args: {source: {class_path: dirl.models.Nope}}}",
        "model.init_args.source: dirl.models.Nope: module 'dirl.models' has no attribute 'Nope'",
    ),
]


@pytest.mark.parametrize(("text", "said"), WRONG_CLASSES)
def test_a_class_of_ours_that_is_not_there_or_takes_no_such_thing_is_said(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(UsageError):
        check_names("fit", ["--config", str(path)])
    assert capsys.readouterr().err.startswith(f"error: {path}: {said}")


@pytest.mark.parametrize("text", [text for text, _ in WRONG_CLASSES])
def test_the_parser_refuses_such_a_class_too(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"{text}\n")
    monkeypatch.setattr(main, "check_names", lambda *_: None)
    with pytest.raises(UsageError):
        main.run(["fit", "--config", str(ROOT / "configs/debug/rl.yaml"), "--config", str(path)])
    assert capsys.readouterr().err.startswith("error: ")


def test_what_a_class_may_be_given_is_left_to_the_parser_where_its_source_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "model: {class_path: mine.Module, init_args: {anything: 1}}\n"
        "engine: {class_path: dirl.rollout.TorchEngine, dict_kwargs: {anything: 1}}\n"
        "trainer: {callbacks+: [{class_path: dirl.callbacks.Guard}]}\n"
        "objective: {init_args: {anything: 1}}\n"
    )
    check_names("fit", ["--config", str(path), "--data", "mine.Data"])


def test_a_class_may_be_chosen_in_one_place_and_given_its_options_in_another(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = str(ROOT / "configs/debug/rl.yaml")
    path = tmp_path / "own.yaml"
    path.write_text("model: {init_args: {decodin: 1}}\n")
    with pytest.raises(UsageError):
        check_names("fit", ["--config", base, "--config", str(path)])
    said = "model: dirl.modules.RLModule takes no 'decodin' (nearest: decoding)"
    assert capsys.readouterr().err.startswith(f"error: {path}: {said}")
    with pytest.raises(UsageError):
        check_names("fit", ["--config", base, "--model.init_args.decodin=1"])
    assert capsys.readouterr().err.startswith(f"error: {said}")
    for other in (
        ["--model", "mine.Module"],
        ["--model.class_path=mine.Module"],
        [f"--config={tmp_path / 'other.yaml'}"],
    ):
        (tmp_path / "other.yaml").write_text("model: mine.Module\n")
        check_names("fit", ["--config", base, *other, "--config", str(path)])


def test_signatures_are_read_as_they_are() -> None:
    for cls in (NewModel, ServerEngine, RLModule, RLDataModule, Rollout, Checkpoint):
        code = inspect.unwrap(cls.__init__).__code__
        path = f"{cls.__module__}.{cls.__name__}"
        known = parameters(path)
        assert known is None or known == set(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]), path
    for cls in (DiPO, TraceRL, Coupled, StableDRL):  # all but the last hand `**options` on to their base
        parser = ArgumentParser()
        parser.add_class_arguments(cls)
        assert parameters(f"{cls.__module__}.{cls.__name__}") == set(vars(parser.get_defaults())), cls
    assert "importance_cap" not in (parameters("dirl.objectives.Coupled") or ()), "which names it itself"
    assert parameters("dirl.models.NewModel") and parameters("dirl.rollout.ServerEngine")
    assert parameters("dirl.types.Prompt") is None  # a dataclass: its source has no signature
    assert parameters("dirl.rewards.base") is None  # a module
    assert parameters("dirl.planning.SHAPES") is None  # found by a function of the package
    with pytest.raises(MissingError, match=r"module 'dirl\.rewards' has no attribute 'Nope'"):
        parameters("dirl.rewards.Nope")


@pytest.mark.parametrize(
    "args", [["demo", "--task", "x"], ["configs", "--folder", "src"], ["rollout", "--samples", "x"], ["trace", "x"]]
)
def test_commands_other_than_those_of_the_trainer_start_without_lightning(args: list[str]) -> None:
    code = (
        "import sys; from dirl.cli.errors import entry; entry(sys.argv[1:]); "
        "print('FOUND', [name for name in ('lightning', 'torchmetrics', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "FOUND []" in done.stdout, done


def test_help_may_be_read_in_part() -> None:
    code = "import sys; from dirl.cli.errors import console; sys.argv[1:] = ['fit', '--help']; console()"
    first = f'{sys.executable} -c "{code}" | head -n 1'
    run = subprocess.run(["bash", "-o", "pipefail", "-c", first], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: dirl")
    assert not run.stderr
