"""Public tensor functions name the shapes of what they take and give, and the tests hold them against these."""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dirl.callbacks
import jaxtyping
import pytest
import torch
from jaxtyping import AbstractDtype, TypeCheckError

from dirl.batches import Layout
from dirl.diffusion.commit import leftmost
from dirl.diffusion.sampling import draw
from dirl.losses import weighted_cross_entropy
from dirl.losses.policy import k3
from dirl.models.head import target_scores
from dirl.types import DecodingParams

ROOTS = {"": Path(dirl.__file__).parent, "callbacks/": Path(dirl.callbacks.__file__).parent}
SOURCES = {
    prefix + str(path.relative_to(root)): path.read_text("utf-8")
    for prefix, root in ROOTS.items()
    for path in sorted(root.rglob("*.py"))
}
SHAPES = {
    name for name, value in vars(jaxtyping).items() if isinstance(value, type) and issubclass(value, AbstractDtype)
}
"""Float, Int64, Bool, ..."""

ANY_SHAPE = {
    "tuple[str, Tensor]": "a weight beside its name, of whichever shape it has",
    "Callable[[Tensor], Tensor]": "is called with tensors of many shapes, one after the other",
}
"""Parts of annotations in which a tensor stands without a shape: why."""
EXCEPTIONS = {
    "modules/layers.py:LayerForward": "of a decoder layer of any family, which its model calls",
}
"""Public names whose annotations have a tensor without a shape all the same: why."""
NOT_HELD = {
    *("autocast.py", "attention/backend.py", "attention/flex.py", "attention/sdpa.py", "models/experts.py"),
    *("models/backbones/llada2.py", "models/tensor_parallel.py"),
    *("models/families/base.py", "models/families/llada2.py", "models/families/qwen3_moe.py"),
    *("rollout/lmdeploy/changes.py", "rollout/remote/update.py"),
}
"""Modules that name shapes to which the import hook does not hold them: tests/conftest.py says why."""


@pytest.mark.parametrize(
    "call",
    [
        lambda: weighted_cross_entropy(torch.zeros(3), torch.zeros(1), 1.0),  # torch would broadcast it
        lambda: k3(torch.zeros(3), torch.zeros(3, 1)),
        lambda: draw(torch.zeros(2, 5), torch.zeros(3)),
        lambda: leftmost(torch.ones(2, 4), 1),  # no bool
        lambda: target_scores(torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(1).long(), (), DecodingParams()),
        lambda: Layout(*(torch.zeros(length).long() for length in (3, 3, 3, 1))),
    ],
    ids=["weighted_cross_entropy", "k3", "draw", "leftmost", "target_scores", "Layout"],
)
def test_a_tensor_of_another_shape_or_type_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


# ------------------------------------------------------------------------------ every public function has them


def without_shape(annotation: ast.AST) -> bool:
    """Whether a bare `Tensor` is in it, be it in a string."""
    if ast.unparse(annotation) in ANY_SHAPE:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return "Tensor" in annotation.value and without_shape(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).removeprefix("jaxtyping.") in SHAPES:
        return False
    if isinstance(annotation, ast.Name | ast.Attribute) and ast.unparse(annotation) in ("Tensor", "torch.Tensor"):
        return True
    return any(map(without_shape, ast.iter_child_nodes(annotation)))


def annotations(node: ast.stmt) -> tuple[str, list[ast.AST]]:
    """The name that a statement defines and what it says of its types: of a function, a field, an alias."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            every = (child.annotation for child in ast.walk(node.args) if isinstance(child, ast.arg))
            return node.name, [given for given in (*every, node.returns) if given is not None]
        case ast.AnnAssign():
            return ast.unparse(node.target), [node.annotation]
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() | ast.BinOp()):
            return name, [node.value]
        case _:
            return "", []


def public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def shapeless(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Public names of a module or a class whose annotations have a tensor without a shape."""
    for node in body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            yield from shapeless(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from shapeless([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)], prefix)
        name, given = annotations(node)
        if name and public(name) and any(map(without_shape, given)):
            yield prefix + name


def test_every_public_function_and_field_names_the_shapes_of_its_tensors_and_no_exception_is_out_of_date() -> None:
    found = {each for name, text in SOURCES.items() for each in shapeless(ast.parse(text).body, f"{name}:")}
    assert found == set(EXCEPTIONS), 'name the shape by jaxtyping, e.g. Float[Tensor, " N"]'
    assert all(any(part in text for text in SOURCES.values()) for part in ANY_SHAPE)


def test_all_modules_that_name_shapes_are_held_to_them_but_those_that_are_listed() -> None:
    shaped = {name for name, text in SOURCES.items() if "\nfrom jaxtyping import " in text}
    assert {"models/head.py", "rollout/torch/slot_cache.py"} <= shaped
    modules = {name: "dirl." + name.removesuffix(".py").replace("/", ".") for name in shaped}
    (hook,) = (finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping"))
    assert {name for name, module in modules.items() if not hook.should_instrument(module)} == NOT_HELD


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def f(a: Tensor): ...", ["f"]),
        ("def f(*a: torch.Tensor): ...", ["f"]),
        ("async def f() -> dict[str, Tensor] | None: ...", ["f"]),
        ("class A:\n    b: 'list[Tensor]'\n    def _c(self, d: Tensor): ...", ["A.b"]),
        ("class A:\n    def __call__(self, x: Tensor, *, y: Tensor | None = None): ...", ["A.__call__"]),
        ("if True:\n    Pair = tuple[Tensor, Tensor]", ["Pair"]),
        ("def f(a: Float[Tensor, ' N'], b: list[Int[Tensor, '']]) -> Iterator[tuple[str, Tensor]]: ...", []),
        ("class _A:\n    b: Tensor", []),
        ("def f():\n    def g(a: Tensor): ...\n    return g", []),
    ],
)
def test_bare_tensors_are_found(text: str, names: list[str]) -> None:
    assert list(shapeless(ast.parse(text).body, "")) == names
