"""The reward for code that passes its tests."""

import re
from typing import ClassVar

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.sandbox import Limits, run_tests, why_not

_BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
STARTING_S = 1.0
"""What two sandboxes may take to start."""
_PYTHON = ("python", "python3", "py")


class UnitTests(Reward):
    """1 if the response's code passes the tests of the ground truth, else 0; also 0 if it was cut (L >= M).

    The code is the last block that is marked as Python, else the last block, else the whole response. It runs in a
    sandbox, the tests in another; see docs/suites.md. Of the prompt's `info`, `prelude` is put before the code and
    the tests, and `tried` lists names that are the code's, as are all that the tests use and nothing defines.

    Args:
        seconds: of processor time that code and tests may take, each; and twice as many of the clock, which must
            be less than the time limit of a sample.
        memory_mb: address space of each process.
        processes: that the code may have at a time, threads included.
        files_mb: that the code may write to its folder.
        weight: factor of this reward in the total.
        name: key of this reward in logs and trajectories.
    """

    judges: ClassVar[bool] = True

    def __init__(
        self,
        seconds: int = 4,
        memory_mb: int = 512,
        processes: int = 4,
        files_mb: int = 16,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.limits = Limits(seconds, memory_mb, processes, files_mb)
        self.takes_s = 2.0 * seconds + STARTING_S
        problem = why_not()
        if problem is not None:
            raise ValueError(
                f"reward {self.name!r} runs code of models, which this host cannot isolate, so it is not run: {problem}"
            )

    def __call__(self, sample: RewardSample) -> float:
        if sample.cut:
            return 0.0
        prelude = sample.info.get("prelude") or ""
        program = f"{prelude}\n{last_code(sample.response)}\n"
        trial = run_tests(program, sample.ground_truth, prelude, sample.info.get("tried") or (), self.limits)
        return float(trial.passed)


def last_code(response: str) -> str:
    """The last block marked as Python, else the last block, else all; a block that is not closed goes to the end."""
    blocks = [(match[1].lower(), match[2]) for match in _BLOCK.finditer(response)]
    marked = [code for language, code in blocks if language in _PYTHON]
    return (marked or [code for _, code in blocks] or [response])[-1]
