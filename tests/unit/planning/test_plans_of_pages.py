"""The `plan` commands of the pages and of the recipes' own comments can be given as they are written."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dirl.cli.plan import read_plan

ROOT = Path(__file__).parents[3]
COMMAND = re.compile(r"lightning run plan (--(?:[^`\n\\]|\\\n|(?<!\\)\n(?=--))*)")


def commands() -> Iterator[tuple[str, str]]:
    pages = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "configs").rglob("*.yaml"))
    for page in (ROOT / "README.md", *pages):
        for match in COMMAND.finditer(page.read_text(encoding="utf-8")):
            yield page.stem, match[1].replace("\\\n", " ")


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in commands()])
def test_a_plan_can_be_made_by_the_command_of_a_page(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_plan(shlex.split(command)).settings.devices >= 1
