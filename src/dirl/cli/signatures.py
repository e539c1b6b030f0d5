"""What a class of this package takes, read from its source: importing it would take seconds.

Where the source does not tell (`**kwargs` that go elsewhere than to the base class, a base class of another package),
nothing is known.
"""

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import EllipsisType


class MissingError(LookupError):
    """A class path of this package that leads nowhere."""


def parameters(path: str) -> set[str] | None:
    """Names of what the class at `dirl.x.Name` takes; None: not known.

    Raises:
        MissingError: its module has no such name.
    """
    module, _, name = path.rpartition(".")
    found = _find(module, name)
    if found is None:
        raise MissingError(f"module {module!r} has no attribute {name!r}")
    return None if found is ... else _parameters(*found)


def takers(path: str, option: str) -> list[str]:
    """The classes beside the one at `dirl.x.Name`, in `dirl.x`, that take an option."""
    module = path.rpartition(".")[0]
    tree = _tree(module)
    listed = (
        [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names] if tree else []
    )
    return [name for name in listed if option in (_known(f"{module}.{name}") or ())]


def _known(path: str) -> set[str] | None:
    try:
        return parameters(path)
    except MissingError:
        return None


Found = tuple[str, ast.ClassDef] | EllipsisType | None
"""A class and the module that it is written in; `...`: something else, or elsewhere; None: there is nothing."""


def _find(module: str, name: str) -> Found:
    tree = _tree(module)
    if tree is None:
        return ...
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module or "", alias.name)
    source = ast.dump(tree)  # assigned, in a branch, a module, or found by a function: rare, so not followed
    return (
        ... if any(f"'{word}'" in source for word in (name, "__getattr__", "*")) or _tree(f"{module}.{name}") else None
    )


def _parameters(module: str, node: ast.ClassDef) -> set[str] | None:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            given = part.args
            names = {arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self"}
            if given.vararg is None and given.kwarg is None:
                return names
            handed = None if given.vararg or given.kwarg is None else _handed_on(part, given.kwarg.arg)
            of_base = _of_base(module, node)
            return None if handed is None or of_base is None else names | (of_base - handed)
    return None if node.decorator_list else _of_base(module, node)


def _of_base(module: str, node: ast.ClassDef) -> set[str] | None:
    if len(node.bases) != 1 or not isinstance(node.bases[0], ast.Name):
        return None
    base = _find(module, node.bases[0].id)
    return None if base is None or base is ... else _parameters(*base)


def _handed_on(init: ast.FunctionDef, kwarg: str | None) -> set[str] | None:
    """What an `__init__` names in `super().__init__(name=..., **kwarg)`; None: its keywords go elsewhere."""
    for call in ast.walk(init):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__" and not call.args:
            rest = [word.value.id for word in call.keywords if word.arg is None and isinstance(word.value, ast.Name)]
            if rest == [kwarg]:
                return {word.arg for word in call.keywords if word.arg is not None}
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    """The source of a module of this package; None: it has none."""
    first, *rest = module.split(".")
    if first != "dirl":
        return None
    callbacks = rest[:1] == ["callbacks"]  # which lies elsewhere in a checkout
    spec = find_spec("dirl.callbacks" if callbacks else "dirl")
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest[1 if callbacks else 0 :])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def abstract_class(name: str) -> str:
    """What is wrong with a class that has no instances: it is a kind of class, or lacks what its kind has to define."""
    module, _, cls = name.rpartition(".")
    lacks = sorted(getattr(getattr(sys.modules.get(module), cls, None), "__abstractmethods__", ()))
    if not lacks or module.partition(".")[0] in ("dirl", "lightning"):
        return f"{name} is a kind of class: name one of that kind, with its options or before them"
    return f"{name} does not define {', '.join(lacks)}, which each of its kind has to"
