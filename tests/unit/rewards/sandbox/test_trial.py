"""Tests and code in two sandboxes give the verdict that they would give in one process, where the code is honest."""

import pytest

from dirl.rewards.sandbox import Limits, SandboxError, Trial, run_tests, why_not
from dirl.rewards.sandbox.trial import verdict
from dirl.rewards.sandbox.values import decode, encode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")

VALUES = [
    *("None", "True", "0", "-7", "1 << 200", "-(1 << 90)", "10 ** 5000", "0.1", "float('inf')", "''", "'ä\\ud800\\n'"),
    *("[]", "[1, [2, 'x']]", "(1,)", "()", "{1, 2}", "frozenset([3])", "{1: 'a', (2, 3): [4]}", "b'\\x00\\xff'"),
    *("bytearray(b'x')", "range(2, 9, 3)", "1 + 2j", "Decimal('1.10')", "Fraction(1, 3)", "{'a': {'b': {'c': None}}}"),
]
IMPORTS = "from decimal import Decimal\nfrom fractions import Fraction\n"


@pytest.mark.parametrize("value", VALUES)
def test_plain_data_arrives_as_it_is(value: str) -> None:
    names: dict = {}
    exec(IMPORTS, names)
    made = eval(value, names)

    def refused(*_: object) -> list:
        raise AssertionError

    arrived = decode(encode(made, refused), refused)
    assert arrived == made and type(arrived) is type(made)


def test_values_go_both_ways() -> None:
    tests = "".join(f"value = {value}\nassert same(value) == value, {value!r}\n" for value in VALUES)
    tests += "nan = same(float('nan'))\nassert nan != nan\nassert same(a=1) == 1\n"
    assert run_tests("def same(x=None, a=None): return x if a is None else a", tests, IMPORTS) == Trial(True)


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("from collections import Counter\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import OrderedDict\ndef f(x): return OrderedDict(x)", "assert f([(1, 2)]) == {1: 2}"),
        (
            "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f(x): return P(x)",
            "assert f(1) == (1,)",
        ),
        ("def f(x): return {1: 2}.keys()", "assert f(0) == {1}"),
        ("def f(x): return (n for n in x)", "assert list(f([1, 2])) == [1, 2]\nassert f([1, 2]) != [1, 2]"),
        ("def f(x): return map(str, x)", "assert set(f([1, 2])) == {'1', '2'}"),
        ("def f(x): x.sort()", "items = [2, 1]\nassert f(items) is None\nassert items == [1, 2]"),
        ("def f(x): x['a'] = 1", "items = {}\nf(items)\nassert items == {'a': 1}"),
        (
            "def f(x): raise ValueError(x)",
            "try:\n    f(3)\n    assert False\nexcept ValueError as e:\n    assert str(e) == '3'",
        ),
        (
            "class Own(KeyError): pass\ndef f(): raise Own(1)",
            "try:\n    f()\n    assert False\nexcept KeyError:\n    pass",
        ),
        ("class Pair:\n    def __init__(s, a): s.a = a\ndef f(p): return p.a", "assert f(Pair(5)) == 5"),
        ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3"),
        ("def f(x): return x\ndef g(x): return 2 * x", "assert g(f(2)) == 4"),
        ("def f(x): return x", "import math\nassert math.isclose(f(0.1 + 0.2), 0.3)"),
        ("import math\ndef f(x): return x", "assert math.isclose(f(0.1 + 0.2), 0.3)"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\ndef f(): return A().x",
            "assert f() == 1",
        ),
        ("import sys\nsys.setrecursionlimit(10**4)\ndef f(n): return n and 1 + f(n - 1)", "assert f(3000) == 3000"),
        ("if __name__ == '__main__':\n    raise SystemExit\ndef f(): return 1", "assert f() == 1"),
        ("def f():\n    print('x')\n    return 1", "assert f() == 1"),
        ("def f(*a, **k): return (a, k)", "assert f(1, x=[2]) == ((1,), {'x': [2]})"),
        (
            "from __future__ import annotations\nimport re, heapq, itertools, bisect, string\ndef f(): return 1",
            "assert f() == 1",
        ),
    ],
)
def test_right_code_passes(program: str, tests: str) -> None:
    assert run_tests(program, tests) == Trial(True)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x): return x", "AssertionError: "),
        ("def f(x): return x / 0", "ZeroDivisionError: division by zero"),
        ("def g(x): return x", "NameError: name 'f' is not defined"),
        ("def f(x) return x", "FailedError: the code ends with SyntaxError: "),
        (
            "import numpy_of_ours",
            "FailedError: the code ends with ModuleNotFoundError: No module named 'numpy_of_ours'",
        ),
        ("def f(x): return f(x)", "RecursionError: "),
        ("def f(x):\n    x = []\n    x.append(x)\n    return x", "RecursionError: "),
        ("def f(x): return input()", "EOFError: "),
        ("def f(x): return object()", "AssertionError: "),
        ("import os\ndef f(x): os._exit(1)", "EOFError: the process of the code has ended"),
    ],
)
def test_wrong_code_fails_and_the_reason_is_said(program: str, reason: str) -> None:
    trial = run_tests(program, "assert f(1) == 2")
    assert not trial.passed and trial.reason.startswith(reason), trial


@pytest.mark.parametrize(
    ("tests", "prelude", "named"),
    [
        ("assert f(1) ==", "", "SyntaxError"),
        ("assert f(1)", "import module_of_nobody", "ModuleNotFoundError"),
        ("assert f(object())", "", "hand over object, which is no plain data"),
    ],
)
def test_tests_that_cannot_be_run_are_an_error_and_no_verdict(tests: str, prelude: str, named: str) -> None:
    with pytest.raises(ValueError, match=rf"the tests cannot be run: .*{named}.*; mend or remove the row"):
        run_tests("def f(x): return 1", tests, prelude)


def test_a_function_with_the_name_of_a_builtin_is_tried_where_it_is_named() -> None:
    program = "import math\ndef sum(a, b): return math.floor(a) + b"
    tests = "assert sum(1.5, 2) == math.floor(3.2)"
    assert run_tests(program, tests, tried=["sum"]) == Trial(True)
    assert not run_tests(program, tests).passed, "else the tests' own builtins are meant"


def test_a_named_function_is_the_codes_though_the_prelude_defines_it() -> None:
    prelude = 'def helper(x): return 2 * x\ndef f(x):\n    """Doubles."""\n'
    tests = "def check(candidate):\n    assert candidate(2) == helper(2)\n\ncheck(f)\n"
    assert run_tests(f"{prelude}\ndef f(x): return helper(x)", tests, prelude, ["f"]) == Trial(True)
    assert run_tests(f"{prelude}    return helper(x)", tests, prelude, ["f"]) == Trial(True)
    assert not run_tests(prelude, tests, prelude, ["f"]).passed


def test_sets_have_the_same_order_in_every_trial() -> None:
    tests = "assert False, f()"
    reasons = {run_tests("def f(): return list({'a', 'b', 'c', 'd'})", tests).reason for _ in range(3)}
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b'{"nonce": "other", "outcome": "passed", "reason": ""}', "without its number"),
        (b'{"outcome": "passed"}', "which is no verdict"),
        (b"passed", "which is no verdict"),
    ],
)
def test_a_verdict_without_the_number_of_the_trial_is_an_error(said: bytes, message: str) -> None:
    with pytest.raises(SandboxError, match=message):
        verdict(said, "number", Limits(), late=False)


@pytest.mark.parametrize(("name", "value"), [("seconds", 0), ("memory_mb", 1), ("processes", 0), ("files_mb", 0)])
def test_limits_that_allow_nothing_are_an_error(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} of a sandbox: use at least"):
        Limits(**{name: value})
