"""The reward for code: which part of a response is the code, and what its tests make of it."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from tests.unit.rewards.samples import sample

import dirl.rewards.code
from dirl.rewards import RewardError, RewardSample, Scorer, UnitTests
from dirl.rewards.code import last_code
from dirl.rewards.sandbox import isolated, why_not

needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
WRONG = "```python\ndef add(a, b):\n    return a - b\n```"


def answer(response: str, index: int = 0, tests: str = TESTS, **info: object) -> RewardSample:
    return replace(sample(response, tests, index=index), info=info)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("    return 1\n", "    return 1\n"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints:\n```\n1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\n```text\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
        ("```Python\nx = 1\n```", "x = 1\n"),
        ("```python3 title=a.py\nx = 1\n```", "x = 1\n"),
        ("```bash\nls\n```", "ls\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 2"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("", ""),
        ("use `x = 1`", "use `x = 1`"),
        ("```python\n```", ""),
    ],
)
def test_the_code_is_the_last_block_of_python_or_the_last_block_or_all(response: str, code: str) -> None:
    assert last_code(response) == code


@needs_sandbox
def test_code_is_scored_by_its_tests_in_worker_processes() -> None:
    samples = [answer(text, index) for index, text in enumerate([RIGHT, WRONG, "I cannot.", f"{RIGHT}\n{WRONG}"] * 3)]
    with Scorer([UnitTests()], workers=2) as scorer:
        report = scorer.score(samples)
    assert [report.results[one.key].components["unit_tests"] for one in samples] == [1.0, 0.0, 0.0, 0.0] * 3
    assert scorer.correctness.name == "unit_tests"


@needs_sandbox
def test_a_response_that_was_cut_is_wrong_and_not_run() -> None:
    assert UnitTests()(replace(answer(RIGHT), response_length=100)) == 0.0


@needs_sandbox
def test_what_stands_before_the_code_is_given_to_code_and_tests() -> None:
    prelude = "import math\ndef add(a, b):\n    '''Sum.'''\n"
    tests = "def check(candidate):\n    assert candidate(1, 2) == math.floor(3.5)\ncheck(add)"
    reward = UnitTests()
    for response in ("    return a + b", "```python\n    return a + b\n```", RIGHT):
        assert reward(answer(response, tests=tests, prelude=prelude, tried=["add"])) == 1.0
    assert reward(answer(WRONG, tests=tests, prelude=prelude, tried=["add"])) == 0.0


@needs_sandbox
def test_limits_are_those_of_the_reward() -> None:
    response = "```python\nimport time\ndef add(a, b):\n    x = bytearray(200 << 20)\n    return a + b\n```"
    assert UnitTests()(answer(response)) == 1.0
    assert UnitTests(memory_mb=128)(answer(response)) == 0.0
    assert UnitTests(seconds=1)(answer("```python\nwhile True: pass\n```")) == 0.0


@needs_sandbox
def test_a_limit_beyond_that_of_a_sample_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match=r"reward 'unit_tests' may take 11 s for a sample, timeout_s=10 ends it"):
        Scorer([UnitTests(seconds=5)])
    Scorer([UnitTests(seconds=5)], timeout_s=11).close()


@needs_sandbox
def test_tests_that_cannot_be_run_are_an_error_of_the_run_and_no_verdict() -> None:
    with Scorer([UnitTests()], workers=1) as scorer, pytest.raises(RewardError) as error:
        scorer.score([answer(RIGHT, tests="assert add(1, 2) ==")])
    assert "reward 'unit_tests' failed on prompt_id='p'" in str(error.value)
    assert "the tests cannot be run: SyntaxError: " in str(error.value)


@needs_sandbox
def test_a_sandbox_that_fails_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = UnitTests()
    monkeypatch.setattr(isolated, "interpreter", lambda: "/usr/lib/no-python")
    with pytest.raises(isolated.SandboxError, match="No such file"):
        reward(answer(RIGHT))


def test_where_nothing_can_be_isolated_the_reward_is_refused_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirl.rewards.code, "why_not", lambda: "this is another system")
    with pytest.raises(
        ValueError,
        match="reward 'unit_tests' runs code of models, which this host cannot isolate, so it is not run: this",
    ):
        UnitTests()


def test_another_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "it needs Linux on x86_64 or aarch64, and this is darwin" in str(why_not.__wrapped__())


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_host_that_lets_anyone_make_namespaces_has_a_sandbox() -> None:
    """Else a broken sandbox would be a host without one, whose tests are skipped."""
    flags = ["--user", "--map-root-user", "--net", "--pid", "--mount", "--fork"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode == 0:
        assert why_not() is None


@needs_sandbox
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_host_without_user_namespaces_is_refused_with_what_to_do() -> None:
    make = "from dirl.rewards import UnitTests\nUnitTests()"
    command = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    ran = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command, sys.executable, make],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "which this host cannot isolate, so it is not run: " in ran.stderr
    assert "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1" in ran.stderr


@needs_sandbox
def test_a_sandbox_that_lets_something_through_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    folders, links = isolated.readable()
    monkeypatch.setattr(isolated, "readable", lambda: ([*folders, "/var"], links))
    assert why_not.__wrapped__() == "/var can be seen"
