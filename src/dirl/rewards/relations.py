r"""Equations and inequalities as answers: what an equation states, and which numbers an inequality admits."""

import re
from dataclasses import dataclass
from itertools import pairwise

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import And

from dirl.rewards.verification import expression_of, split_outside, verified, verified_expressions

RELATION = re.compile(r"<|>|\\(?:le|ge|ne)(?![A-Za-z])")
_EQUALS = re.compile(r"=|\\approx(?![A-Za-z])")
_OR = re.compile(r"\\text\s*\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\cup(?![A-Za-z])")
_AND = re.compile(r"\\text\s*\{\s*,?\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|[,;]")
_MEMBER = re.compile(r"^\s*[A-Za-z](?:_\{?\w+\}?)?\s*\\in(?![A-Za-z])\s*")
_BUILDER = re.compile(r"^\\\{\s*[A-Za-z]\s*(?:\\mid|:|\|)\s*(.*)\\\}$")


@dataclass(frozen=True)
class Stated:
    """An answer as it stands, `value` being what it names: None for an equation between expressions, or a false one."""

    text: str
    value: str | None
    is_equation: bool
    holds: bool = True


def stated(text: str) -> Stated:
    r"""`5`, `x=5`, `x=2+3=5` and `2+3=5` state 5; `x+y=0` and `2x=10` state no value; `4=5` does not hold."""
    text = _MEMBER.sub("", text)
    pieces = [piece.strip() for piece in split_outside(text, _EQUALS)]
    if pieces[0] == "" and len(pieces) == 2:
        pieces = pieces[1:]
    if len(pieces) == 1:
        return Stated(pieces[0], pieces[0], is_equation=False)
    if "" in pieces:
        return Stated(text, None, is_equation=True, holds=False)
    if r"\approx" in text and "=" not in text and not _is_name(pieces[0]):
        return Stated(pieces[0], pieces[0], is_equation=False)  # an exact value and what it is about
    if not _is_name(pieces[0]) and _is_name(pieces[-1]):
        pieces.reverse()  # 5=x
    closed = [piece for piece in pieces if _is_closed(piece)]
    holds = all(verified(a, b) for a, b in pairwise(closed))
    if len(closed) == len(pieces) and holds:  # 2+3=5 names nothing: it is its value
        return Stated(pieces[-1], pieces[-1], is_equation=False)
    value = pieces[-1] if holds and _is_name(pieces[0]) else None
    return Stated(f"{pieces[0]}={pieces[-1]}", value, is_equation=True, holds=holds)


def _is_closed(text: str) -> bool:
    """Whether it is a number, however written."""
    expression = expression_of(text)
    return isinstance(expression, sympy.Expr) and not expression.free_symbols and not _applies_unknown(expression)


def _is_name(text: str) -> bool:
    r"""A variable, `AB`, `f(2)`, `\sin x`, `|AB|`, `(x, y)`, words: what a value is given to; not `2x` or `x+y`."""
    expression = expression_of(text)
    if expression is None:
        return bool(re.search("[A-Za-z]", text)) and not re.search(r"[+*/^<>]", text)
    if isinstance(expression, sympy.Mul):
        return all(isinstance(factor, sympy.Symbol) or factor == sympy.E for factor in expression.args)
    if isinstance(expression, (sympy.Tuple, sympy.Interval, sympy.FiniteSet)):
        return bool(expression.free_symbols)
    if isinstance(expression, (sympy.Derivative, sympy.Integral)):
        return True
    is_function = isinstance(expression, sympy.Function) and not isinstance(expression, sympy.factorial)
    return isinstance(expression, sympy.Symbol) or (
        is_function and (bool(expression.free_symbols) or _applies_unknown(expression))
    )


def _applies_unknown(expression: object) -> bool:

    return bool(expression.atoms(AppliedUndef))


def same_equation(truth: str, answer: str) -> bool:
    """math-verify's verdict by solutions, where there are any; else one must be a multiple of the other."""
    if not verified(truth, answer):
        return False
    expected, given = expression_of(truth), expression_of(answer)
    if expected == given or not (isinstance(expected, sympy.Eq) and isinstance(given, sympy.Eq)):
        return True
    ratio = sympy.simplify((expected.lhs - expected.rhs) / (given.lhs - given.rhs))
    return bool(ratio.is_number and ratio.is_nonzero) or bool(sympy.solve(expected, expected.free_symbols))


def same_solutions(truth: str, answer: str) -> bool:
    """Two answers of which one at least is an inequality: by the numbers that they admit, of one variable."""
    (name, expected), (other, given) = _solutions(truth), _solutions(answer)
    if expected is None or given is None:
        both = RELATION.search(truth) and RELATION.search(answer)
        return bool(both) and verified(_named(truth), _named(answer))
    if None not in (name, other) and name != other:
        return False
    return expected == given or verified_expressions(expected, given)


def _solutions(text: str) -> tuple[object, object]:
    """Variable (None for an interval) and set of numbers; (None, None) if it is neither of one variable nor a set."""
    text = _BUILDER.sub(r"\1", _MEMBER.sub("", text))
    if not RELATION.search(text):
        expression = expression_of(text)
        return None, expression if isinstance(expression, sympy.Set) else None
    name, union = None, sympy.S.EmptySet
    for piece in split_outside(text, _OR):
        found = [_relations(part) for part in _listed(split_outside(piece, _AND))]
        relations = [relation for part in found for relation in part] if all(found) else []
        names = {symbol for r in relations for symbol in r.free_symbols} | ({name} if name else set())
        if not relations or len(names) != 1:
            return None, None
        (name,) = names
        sets = [_admitted(relation) for relation in relations]
        both = sympy.Intersection(*sets)
        outside = both is sympy.S.EmptySet and re.search(r"[,;]", piece)  # `x<1, x>2` lists two ranges
        union = sympy.Union(union, *sets) if outside else sympy.Union(union, both)
    return name, union


def _listed(parts: list[str]) -> list[str]:
    r"""`> 5` as `x > 5`; `x \ne 0`, `1` as `x \ne 0`, `x \ne 1`."""
    named = [_named(part) for part in parts]
    for i, part in enumerate(named[1:], 1):
        left = re.match(r"(.+\\ne(?![A-Za-z]))", named[i - 1])
        if left and not RELATION.search(part):
            named[i] = f"{left[1]} {part}"
    return named


def _relations(text: str) -> list:
    """The single relations of `1<x<2`; none if it is not made of relations."""

    expression = expression_of(text)
    found = list(expression.args) if isinstance(expression, And) else [expression]
    return found if all(isinstance(r, Relational) for r in found) else []


def _admitted(relation: object) -> object:
    if relation.free_symbols:
        return relation.as_set()
    return sympy.S.Reals if relation.doit() == sympy.true else sympy.S.EmptySet


def _named(text: str) -> str:
    """Give a relation without a left side one: `> 5` becomes `x > 5`."""
    return f"x {text}" if RELATION.match(text.strip()) else text
