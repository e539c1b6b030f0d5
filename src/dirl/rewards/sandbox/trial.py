"""One trial of code by tests, each in a sandbox of its own, and its verdict."""

import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dirl.rewards.sandbox.isolated import Isolated, Limits, SandboxError, read_until


@dataclass(frozen=True)
class Trial:
    """Whether all tests passed; `reason` says what did not, for people."""

    passed: bool
    reason: str = ""


def run_tests(
    program: str, tests: str, prelude: str = "", tried: Sequence[str] = (), limits: Limits | None = None
) -> Trial:
    """Run a program, then tests of its functions.

    Tests and program lie in two sandboxes and exchange calls and plain data, so nothing that the program does, to
    itself, to Python or to the values that it returns, can make a test pass. The verdict comes from the tests' process
    alone, with a number that it was given.

    Args:
        program: Python, not to be trusted.
        tests: Python that raises if the program is wrong.
        prelude: what the tests need and do not define, e.g. imports; the program is run without it.
        tried: names that are the program's, whatever else has them, as are all that the tests use and nothing defines.

    Raises:
        ValueError: the tests cannot be run, whatever the program is.
        SandboxError: nothing could be tried.
    """
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    asked = {"prelude": prelude, "tests": tests, "tried": list(tried), "nonce": nonce}
    reading, writing = os.pipe()
    here, there = socket.socketpair()
    try:
        with (
            there,
            here,
            Isolated(["values", "candidate"], {"program": program}, [there.fileno()], limits) as code,
            Isolated(["values", "examiner"], asked, [here.fileno(), writing], limits) as examiner,
        ):
            there.close()
            here.close()
            os.close(writing)
            writing = -1
            code.await_ready()
            examiner.await_ready()
            deadline = time.monotonic() + 2 * limits.seconds
            said = read_until(reading, deadline)
            late = time.monotonic() >= deadline
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)
    return verdict(said, nonce, limits, late)


def verdict(said: bytes, nonce: str, limits: Limits, late: bool) -> Trial:
    if not said:
        limit = f"{2 * limits.seconds} s" if late else f"its limits ({limits.seconds} s of processor time)"
        return Trial(False, f"no result within {limit}")
    try:
        found = json.loads(said)
        genuine = secrets.compare_digest(found["nonce"], nonce)
    except (ValueError, KeyError, TypeError) as error:
        raise SandboxError(f"the tests' process said {said[:80]!r}, which is no verdict") from error
    if not genuine:
        raise SandboxError("the tests' process gave a verdict without its number")
    if found["outcome"] == "untestable":
        raise ValueError(f"the tests cannot be run: {found['reason']}; mend or remove the row")
    return Trial(found["outcome"] == "passed", found["reason"])
