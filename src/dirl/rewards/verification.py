"""math-verify as dirl uses it: reading one expression, comparing two, with the size of numbers looked at."""

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, I, Product, Sum

from dirl.rewards import magnitude

# It warns, once a process, that its time limit is off; ours is the worker's.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def parsed(text: str) -> list:
    """What math-verify reads: the expression, if it can, and the letters."""
    read = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
    return [_with_imaginary_unit(expression) for expression in read]


def _with_imaginary_unit(expression: object) -> object:
    """i is a variable to math-verify, so that i^2 would not be -1; it may count in a sum or a product."""
    if not isinstance(expression, Expr) or expression.has(Sum, Product):
        return expression
    names = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
    return expression.xreplace(dict.fromkeys(names, I)) if names else expression


def expression_of(text: str) -> Basic | None:
    """The expression alone; None if math-verify cannot read it."""
    first = next(iter(parsed(text)), None)
    return None if isinstance(first, str) else first


def verified(truth: str, answer: str) -> bool:
    """math-verify's verdict, unless it is one on rounding. ArithmeticError for what is no value or too large."""
    expected, given = parsed(truth), parsed(answer)
    magnitude.check_defined(expected, given)
    if expected and given and not isinstance(expected[0], str) and expected[0] == given[0]:
        return True
    magnitude.check_size(expected, given)
    right = verify(expected, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return magnitude.agree(expected, given, right)


def verified_expressions(expected: Basic, given: Basic) -> bool:
    return verify([expected], [given], timeout_seconds=None, raise_on_error=True)


def split_outside(text: str, separator: re.Pattern) -> list[str]:
    """Split where the separator stands outside of all brackets."""
    pieces, begin = [], 0
    for match in separator.finditer(text):
        if match.start() >= begin and balanced(text[begin : match.start()]):
            pieces.append(text[begin : match.start()])
            begin = match.end()
    return [*pieces, text[begin:]]


def balanced(text: str) -> bool:
    """Whether every bracket that opens is closed by some bracket, and none closes before."""
    depth = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return False
    return depth == 0
