"""The size of numbers in answers: those that differ although they round alike, and those too large to calculate."""

import math
from collections.abc import Sequence

import sympy

MAX_DIGITS = 1_000_000
"""Digits of an integer that is still calculated, in a fraction of a second."""
ROUNDING, EXACT, SAME = 2e-6, 1e-9, 1e-15
"""Relative differences: allowed to a decimal that stands for an exact value, to exact values; certainly none."""


def check_defined(*sides: Sequence) -> None:
    """ArithmeticError if one side is a division by zero or the like."""
    for expression in (side[0] for side in sides if side):
        if isinstance(expression, sympy.Basic) and expression.has(sympy.zoo, sympy.nan):
            raise ArithmeticError("no value")


def check_size(*sides: Sequence) -> None:
    """ArithmeticError if one side has a number that is too large to calculate."""
    for expression in (side[0] for side in sides if side):
        if _digits(expression) > MAX_DIGITS:
            raise ArithmeticError("too large to calculate")


def agree(expected: Sequence, given: Sequence, right: bool) -> bool:
    """`right`, corrected where both are numbers: wrong if they differ relatively, right if they do not."""
    if not expected or not given or isinstance(expected[0], str) or isinstance(given[0], str):
        return right
    return _agree(expected[0], given[0], right)


def _agree(a: object, b: object, right: bool) -> bool:
    if not isinstance(a, sympy.Basic) or not isinstance(b, sympy.Basic) or a.has(sympy.UnevaluatedExpr):
        return right
    if isinstance(a, (sympy.Tuple, sympy.Interval, sympy.FiniteSet)) and len(a.args) == len(b.args):
        return right and all(_agree(x, y, True) for x, y in zip(a.args, b.args, strict=True))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or a.free_symbols or b.free_symbols:
        return right
    x, y = sympy.N(a, 20), sympy.N(b, 20)
    if not (x.is_finite and y.is_finite and x.is_number and y.is_number):
        return right
    difference, size = abs(x - y), max(abs(x), abs(y))
    has_decimal = a.has(sympy.Float) or b.has(sympy.Float)
    if not right:
        return bool(has_decimal and difference <= SAME * size)
    allowed = (ROUNDING if has_decimal else EXACT) * size
    return bool(difference <= allowed or sympy.simplify(a - b).is_zero)  # where all digits cancel, N finds no zero


def _digits(expression: object) -> float:
    """About how many digits the largest number in an unevaluated expression has; at most infinity."""
    if not isinstance(expression, sympy.Basic):
        return 0.0
    largest = max((_digits(part) for part in expression.args), default=0.0)
    if expression.free_symbols:
        return largest
    if isinstance(expression, sympy.factorial):
        n = _size(expression.args[0])
        return max(largest, n * math.log10(max(n, 10)))
    if isinstance(expression, sympy.binomial):
        n, k = map(_size, expression.args)
        return max(largest, min(k, n) * math.log10(max(n, 10)))
    if isinstance(expression, sympy.Pow):
        base, exponent = expression.args
        return max(largest, _size(exponent) * _length(base))
    return largest


def _size(number: sympy.Basic) -> float:
    """The absolute value, without calculating what is large: infinity beyond 10^15."""
    if not isinstance(number, sympy.Number) and _digits(number) > 15:
        return math.inf
    value = abs(sympy.N(number, 15))
    return float(value) if value <= 10**15 else math.inf


def _length(number: sympy.Basic) -> float:
    """Digits of a number before, or zeros after, the decimal point: |log10|."""
    if not isinstance(number, sympy.Number) and _digits(number) > MAX_DIGITS:
        return math.inf
    value = abs(sympy.N(number, 15))
    return float(abs(sympy.log(value, 10))) if value > 0 else 0.0
