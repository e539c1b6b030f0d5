"""Texts reach the program as they were typed, from the command line and from files, and through config.yaml."""

from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dirl.cli.fit import DirlCLI
from dirl.cli.main import parse_command
from dirl.cli.parsers import PARSER_MODE, CommandParser
from dirl.cli.text import UsageError, mark, parse_texts, unmark

CONFIG = str(Path(__file__).parents[3] / "configs" / "debug" / "rl.yaml")
NASTY = (
    *("Answer: x", "[1, 2]", "{a: b}", "- a", "# no comment", "&a", "*a", "'q'", '"q"', "1e3", "true", "x:"),
    *("a\nb: c", "\t", "null and", "1", "--", "?", ":\x85", "a\u2028b", "? b", ": "),
)
NAME = "--data.init_args.system_prompt"
ESCAPED = {r"costs \${x}": "costs ${x}", r"\${a}: \${b}": "${a}: ${b}"}


class Parsed(DirlCLI):
    """Stops at the objects' arguments."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def parsed(*args: str) -> DirlCLI:
    return Parsed(["fit", "--config", CONFIG, "--data.init_args.train=x", *args])


def system_prompt(cli: DirlCLI) -> Any:
    return unmark(cli.config)["fit"]["data"]["init_args"]["system_prompt"]


def written(cli: DirlCLI, path: Path) -> Path:
    """config.yaml as a run writes it."""
    config = cli.config["fit"].clone()
    config.pop("config", None)
    parser = cli.parser._subparsers._group_actions[0].choices["fit"]
    path.write_text(parser.dump(config, skip_link_targets=False))
    return path


@pytest.mark.parametrize("text", NASTY[::3])
def test_a_text_is_taken_as_it_is_typed(text: str, tmp_path: Path) -> None:
    cli = parsed(f"{NAME}={text}")
    assert system_prompt(cli) == text
    again = Parsed(["fit", "--config", str(written(cli, tmp_path / "config.yaml"))])
    assert system_prompt(again) == text
    if not text.startswith("-"):  # that is an option, to every parser
        assert system_prompt(parsed(NAME, text)) == text


@pytest.mark.parametrize(("typed", "meant"), ESCAPED.items())
def test_an_escaped_interpolation_is_text(typed: str, meant: str, tmp_path: Path) -> None:
    cli = parsed(f"{NAME}={typed}")
    assert system_prompt(cli) == meant
    again = Parsed(["fit", "--config", str(written(cli, tmp_path / "config.yaml"))])
    assert system_prompt(again) == meant
    file = tmp_path / "prompt.yaml"
    file.write_text(yaml.safe_dump({"data": {"init_args": {"system_prompt": typed}}}))
    args = ["--data.path=x", "--output=o", "--source=dirl.models.NewModel", f"--data.system_prompt={typed}"]
    assert parse_command("rollout", args)["data"].system_prompt == meant


def test_an_interpolation_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "me")
    assert system_prompt(parsed(NAME + "=by ${oc.env:WHO}")) == "by me"


def test_what_is_no_text_is_still_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UsageError):
        parsed("--data.init_args.group_size=a: b")
    assert "data.init_args.group_size" in capsys.readouterr().err
    assert parsed("--data.init_args.chat_template_kwargs={a: 1}").config["fit"]["data"]["init_args"][
        "chat_template_kwargs"
    ] == {"a": 1}


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Co", "Cs"]), max_size=20)


class Taker:
    """Has texts for options."""

    def __init__(self, text: str = "", texts: list[str] | None = None) -> None:
        self.text, self.texts = text, texts


def small_parser() -> CommandParser:
    parser = CommandParser(parser_mode=PARSER_MODE)
    parser.add_argument("--config", action="config")
    parser.add_argument("--own", type=str, default="")
    parser.add_subclass_arguments(Taker, "taker", default={"class_path": f"{__name__}.Taker"})
    return parser


def shown(test: Any) -> Any:
    """With the nasty ones among its cases."""
    return reduce(lambda found, text: example(text)(found), NASTY, test)


@pytest.mark.property
@shown
@given(TEXTS.filter(lambda text: "${" not in text and "\x00" not in text))
def test_any_text_goes_through_a_small_parser_and_its_file(text: str) -> None:
    """As the next test, where a case takes a hundredth of its time."""
    if text in ("null", "Null", "NULL", "~"):
        return
    parser = small_parser()
    found = parse_texts(parser.parse_args, [f"--own={text}", f"--taker.text={text}"])
    assert (unmark(found.own), unmark(found.taker.init_args.text)) == (text, text)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        found.taker.init_args.texts = [mark(text)]
        del found["config"]
        path.write_text(parser.dump(found), encoding="utf-8")
        again = unmark(parse_texts(parser.parse_args, [f"--config={path}"]))
    assert (again.own, again.taker.init_args.text, again.taker.init_args.texts) == (text, text, [text])


@pytest.mark.property
@settings(max_examples=max(5, settings().max_examples // 10))  # a case builds the command line's parser twice, 0.3 s
@given(TEXTS.filter(lambda text: "${" not in text and "\x00" not in text))
def test_any_text_is_taken_as_it_is_typed_and_written(text: str) -> None:
    if text in ("null", "Null", "NULL", "~"):
        return
    with TemporaryDirectory() as folder:
        cli = parsed(f"{NAME}={text}")
        assert system_prompt(cli) == text
        assert system_prompt(Parsed(["fit", "--config", str(written(cli, Path(folder) / "config.yaml"))])) == text
