"""LMDeploy's own model and kernels, interpreted by Triton in a process of their own: tests/lmdeploy/interpreted.py.

The interpreter stops at newer numpy, and newer Triton lacks what LMDeploy's kernels use.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(Version(version("triton")) > Version("3.7.1"), reason="needs triton <= 3.7.1"),
    pytest.mark.skipif(Version(np.__version__) >= Version("2.4"), reason="needs numpy < 2.4"),
]


@pytest.mark.parametrize("block_size", [4, 8])
def test_traces_of_the_real_model_and_kernels_equal_the_torch_engines_asleep_in_between_or_not(block_size: int) -> None:
    assert largest_difference(block_size) < 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize(("tp", "experts"), [(2, 0), (1, 1), (2, 1)])
def test_so_they_are_of_a_model_with_experts_and_of_two_ranks_that_share_each_layer(tp: int, experts: int) -> None:
    assert largest_difference(4, tp, experts) < 1e-4


@pytest.mark.thorough
def test_so_they_are_where_more_ranks_share_a_layer_than_it_has_heads_of_keys() -> None:
    assert largest_difference(4, 4) < 1e-4


def largest_difference(*arguments: int) -> float:
    command = [sys.executable, "-m", "tests.lmdeploy.interpreted", *map(str, arguments)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return float(ran.stdout.split()[-1])
