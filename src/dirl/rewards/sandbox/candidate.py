"""The side of the code that is tried: it runs the code, then calls its functions as the tests ask, in a sandbox."""

import json
import os
import sys
import types
from typing import Any

from dirl.rewards.sandbox.values import Link, decode, encode


def main() -> None:
    """Standard input holds `{"program": ...}`; descriptor 3 leads to the tests."""
    with open(0, encoding="utf-8", closefd=False) as given:
        program = json.load(given)["program"]
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - input() of the program finds an end at once
    link = Link(3)
    try:
        module = types.ModuleType("program")
        sys.modules["program"] = module
        exec(compile(program, "program", "exec"), module.__dict__)
        link.send({"loaded": None})
    except BaseException as error:  # SystemExit too
        link.send({"loaded": described(error)})
        return
    serve(link, module.__dict__)


def serve(link: Link, names: dict[str, Any]) -> None:
    """Answer calls until the tests have ended."""
    kept: list[Any] = []

    def keep(value: Any) -> list:
        kept.append(value)
        return ["handle", len(kept) - 1]

    def other(kind: str, content: Any) -> Any:
        if kind == "name" and content not in names:
            raise NameError(f"name {content!r} is not defined")
        return names[content] if kind == "name" else kept[content]

    while True:
        try:
            call = link.receive()
        except EOFError:
            return
        try:
            function = decode(call["function"], other)
            arguments = decode(call["arguments"], other)
            named = {name: decode(value, other) for name, value in call["named"].items()}
            answer = {"value": encode(function(*arguments, **named), keep)}
            after = encode(arguments, keep)
            if after != call["arguments"]:
                answer["arguments"] = after
        except BaseException as error:
            answer = {"raised": described(error)}
        link.send(answer)


def described(error: BaseException) -> list[str]:
    """Name of its class, or of the built-in one that it derives from, and what it says."""
    name = next((c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"), "Exception")
    try:
        return [name, str(error)[:500]]
    except BaseException:
        return [name, "?"]


if __name__ == "__main__":
    main()
