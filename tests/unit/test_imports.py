"""Imports point one way, from the command line down to the values, and no module needs itself."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"dirl": ROOT / "src" / "dirl", "dirl.callbacks": ROOT / "callbacks"}

LEVELS = (
    {
        "autocast",
        "errors",
        "finite",
        "seeds",
        "spans",
        "ranges",
        "outputs",
        "progress_bar",
        "data_ranks",
        "stopping",
        "checkpoints",
        "__version__",
    },
    {"types", "batches", "checked_json"},
    {"trajectory_files", "attention", "diffusion", "losses"},
    {"models", "packing", "rewards", "advantages"},
    {"objectives", "reading"},
    {"rollout"},
    {"tasks", "rl"},
    {"data", "evaluation", "report"},
    {"modules", "strategy"},
    {"planning"},
    {"callbacks"},
    {"cli"},
    {"demo", "__main__"},
)
"""Each may import what stands above it, and of its own level itself."""
LEVEL = {package: number for number, packages in enumerate(LEVELS) for package in packages}
UPWARD = {
    ("cli", "demo"): "the command `demo` is looked up when it is run",
}
"""What points the other way, and why."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for base, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            name = ".".join([base, *path.relative_to(folder).with_suffix("").parts])
            yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """Names of our own modules, or of what lies in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == "dirl"]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dirl":
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def package(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def test_every_package_has_a_level() -> None:
    assert {package(name) for name, _ in modules()} - {"dirl"} <= LEVEL.keys()


def test_imports_point_one_way() -> None:
    """Those within functions and for type checkers, too."""
    found = {
        (package(name), package(other))
        for name, tree in modules()
        for node in ast.walk(tree)
        for other in imported(node)
        if "." in name
    }
    upward = {(a, b) for a, b in found if a != b and LEVEL[b] >= LEVEL[a]}
    assert upward == UPWARD.keys()


def test_no_module_needs_itself_to_be_imported() -> None:
    trees = dict(modules())
    needs: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        for node in tree.body:
            for other in imported(node):
                target = other if other in trees else other.rpartition(".")[0]
                needs[name].add(target)
    for name in trees:
        needs[name].discard(name)
    assert circle_of({name: {n for n in found if n in trees} for name, found in needs.items()}) == []


def test_a_circle_is_found() -> None:
    assert sorted(set(circle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}}))) == ["b", "c"]


def circle_of(needs: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return error.args[1]
    return []
