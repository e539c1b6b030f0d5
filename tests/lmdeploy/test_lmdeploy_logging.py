"""LMDeploy's import changes how a whole process logs; here it does not."""

import subprocess
import sys

FRESH = """
import logging
logging.basicConfig(level=logging.INFO)
from dirl.rollout.lmdeploy.logging import warnings_alone
with warnings_alone():
    import dirl.rollout.lmdeploy.changes
from lmdeploy.utils import get_logger
print(logging.getLogger().handlers[0].level, get_logger("lmdeploy").level)
"""


def test_lmdeploy_logs_warnings_alone_and_the_root_logger_what_it_did() -> None:
    ran = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["0", "30"]
