"""What pages, comments and docstrings name is there: tests, modules and classes, files, commands, targets of links."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from pkgutil import resolve_name

import pytest

from dirl.cli.table import NAMES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("src", "callbacks", "configs", "benchmarks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.*"))]
TEXTS = {path: path.read_text("utf-8") for path in PAGES + CODE if path.suffix in (".md", ".py", ".yaml")}

NO_TEST = {"test_list", "test_setup_code"}
"""Columns of data sets."""
NO_NAME = {"dirl.x", "dirl.x.Name"}
"""Stands for any."""
NO_FILE = {"configs/objective/NAME.yaml"}
"""Stands for any."""

ROOTS = "|".join((*FOLDERS, "examples", "docs", "tests", "requirements"))
PATH = re.compile(rf"(?<![\w./-])(?:{ROOTS})/[\w./*-]*(?:\{{[\w,]+\}}[\w./*-]*)*")
DOTTED = re.compile(r"(?<![\w./-])(?:dirl|benchmarks)(?:\.[A-Za-z_]\w*)+")
IN_BACKTICKS = re.compile(rf"`({DOTTED.pattern})")


def test_every_test_that_is_named_exists() -> None:
    absent = found(r"\btest_\w+", lambda name: name in names_of_tests() | NO_TEST)
    assert not absent, "no such test: name the present one, or write what holds it"


@pytest.mark.parametrize("pattern, texts", [(DOTTED, PAGES), (IN_BACKTICKS, CODE)], ids=["pages", "docstrings"])
def test_every_dotted_name_can_be_imported(pattern: re.Pattern[str], texts: list[Path]) -> None:
    absent = found(pattern, lambda name: name in NO_NAME or importable(name), texts)
    assert not absent, "nothing of that name can be imported"


def test_every_file_and_folder_that_is_named_exists() -> None:
    absent = found(PATH, lambda name: name in NO_FILE or all(any(ROOT.glob(path)) for path in alternatives(name)))
    assert not absent, "no such file: name the present one, or add what a run makes to NO_FILE with the reason"


def test_every_relative_link_leads_to_a_file_and_a_heading() -> None:
    absent = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
            if "://" not in target:
                name, _, heading = target.partition("#")
                file = (page.parent / name).resolve() if name else page
                if not file.exists() or (heading and heading not in headings(file)):
                    absent.append(f"{page.relative_to(ROOT)}: {target}")
    assert not absent, "the link leads nowhere"


def test_every_command_is_one_that_there_is() -> None:
    absent = found(r"(?:lightning run|-m dirl\.cli) ([a-z]+)\b", lambda name: name in NAMES)
    assert not absent, f"no such command: there are {', '.join(NAMES)}"
    targets = re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert not found(r"`make ([a-z][a-z0-9-]*)", lambda name: name in targets), "no such target of the Makefile"


def found(pattern, exists, texts=tuple(TEXTS)) -> list[str]:
    """Where something is named that does not exist."""
    absent = []
    for path in texts:
        for match in re.finditer(pattern, TEXTS.get(path, "")):
            name = match[match.re.groups].rstrip(".")
            if not exists(name):
                line = TEXTS[path].count("\n", 0, match.start()) + 1
                absent.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    return absent


@cache
def names_of_tests() -> frozenset[str]:
    def names() -> Iterator[str]:
        for path in (ROOT / "tests").rglob("test_*.py"):
            yield path.stem
            yield from re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)

    return frozenset(names())


@cache
def importable(name: str) -> bool:
    """A module is looked for and not run, as some need a library that only a GPU host has."""
    try:
        if find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def alternatives(path: str) -> Iterator[str]:
    """A path with each of what its braces hold."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", path)]
    return ("".join(chosen).rstrip("/") for chosen in product(*parts))


@cache
def headings(page: Path) -> frozenset[str]:
    """As links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)
