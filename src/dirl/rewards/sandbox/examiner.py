"""The side of the tests: it runs them, calls the code that they try over the link, and says how they ended.

Runs in a sandbox of its own, which the tried code cannot reach: what it hears from there are answers to its calls,
plain data. Only this process has the nonce and the descriptor that a verdict is written to.
"""

import ast
import builtins
import importlib
import json
import os
import sys
import types
from typing import Any

from dirl.rewards.sandbox.values import Link, decode, encode


class UntestableError(Exception):
    """The tests themselves cannot be run, whatever the code is."""


class FailedError(Exception):
    """The code did not get as far as to be tried."""


def main() -> None:
    """Standard input holds `{"prelude", "tests", "tried", "nonce"}`; 3 leads to the code, 4 to who asks."""
    with open(0, encoding="utf-8", closefd=False) as given:
        asked = json.load(given)
    try:
        examine(asked["prelude"], asked["tests"], asked["tried"])
        outcome, reason = "passed", ""
    except UntestableError as error:
        outcome, reason = "untestable", str(error)
    except BaseException as error:
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
    os.write(4, json.dumps({"nonce": asked["nonce"], "outcome": outcome, "reason": reason[:2000]}).encode())


def examine(prelude: str, tests: str, names: list[str]) -> None:
    """Return if all tests pass, else raise."""
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    try:
        exec(compile(prelude, "prelude", "exec"), module.__dict__)
        tree = ast.parse(tests)
    except BaseException as error:
        raise UntestableError(f"{type(error).__name__}: {error}") from error
    tried = Tried(Link(3))
    for name in {*names, *unknown_names(tree, module.__dict__)}:
        module.__dict__[name] = Remote(tried, ["name", name])
    exec(compile(tree, "tests", "exec"), module.__dict__)


def unknown_names(tree: ast.Module, known: dict[str, Any]) -> set[str]:
    """What the tests use and do not define, so that the code must; modules of the library are imported on the way."""
    nodes = list(ast.walk(tree))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name
    }
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            own |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - own - known.keys() - vars(builtins).keys()
    for name in used & sys.stdlib_module_names:
        known[name] = importlib.import_module(name)
    return used - sys.stdlib_module_names


class Tried:
    """The code on the other side."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._handles: dict[int, Remote] = {}
        problem = link.receive()["loaded"]
        if problem is not None:
            name, text = problem
            raise FailedError(f"the code ends with {name}: {text}")

    def call(self, function: "Remote", arguments: tuple, named: dict[str, Any]) -> Any:
        given = encode(list(arguments), self._reference)
        options = {name: encode(value, self._reference) for name, value in named.items()}
        self._link.send({"function": function.reference, "arguments": given, "named": options})
        answer = self._link.receive()
        if "raised" in answer:
            name, text = answer["raised"]
            kind = getattr(builtins, name, Exception)
            plain = kind in (SystemExit, KeyboardInterrupt, GeneratorExit) or not issubclass(kind, Exception)
            raise (Exception if plain else kind)(text)
        if "arguments" in answer:
            for mine, theirs in zip(arguments, decode(answer["arguments"], self._remote), strict=True):
                changed(mine, theirs)
        return decode(answer["value"], self._remote)

    def _reference(self, value: Any) -> list:
        if not isinstance(value, Remote):
            raise UntestableError(f"the tests hand over {type(value).__name__}, which is no plain data")
        return value.reference

    def _remote(self, kind: str, content: Any) -> "Remote":
        if kind != "handle" or not isinstance(content, int):
            raise ValueError(f"no answer: {kind!r}")
        return self._handles.setdefault(content, Remote(self, [kind, content]))


class Remote:
    """A function, a class or an object of the code; equal to itself alone."""

    def __init__(self, tried: Tried, reference: list) -> None:
        self.tried, self.reference = tried, reference

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.tried.call(self, arguments, named)


def changed(mine: Any, theirs: Any) -> None:
    """Do to an argument what the code did to it."""
    if isinstance(mine, list | bytearray):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


if __name__ == "__main__":
    main()
