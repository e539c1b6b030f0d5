"""What is answered before anything large is imported: help, and errors that a look at the arguments finds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dirl.cli import help as texts
from dirl.cli.early import check_names, is_known, option_names
from dirl.cli.table import FUNCTIONS, NAMES, function
from dirl.cli.text import UsageError

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
    command = {"eval.yaml": "evaluate", "serve.yaml": "serve"}.get(path.name, "fit")
    check_names(command, [f"--config={path}"])


def test_below_a_class_anything_may_follow() -> None:
    known = option_names("fit")
    assert is_known("model.init_args.anything.else", known)
    assert is_known("trainer.callbacks", known) and is_known("trainer", known)
    assert not is_known("trainer.max_steps.deeper.and_deeper", frozenset({"trainer.a", "trainer.a.b"}))
