"""One run of `dirl fit` under a strategy."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.several_runs import fit_all

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FAST = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def run(root: Path, strategy: str, *args: object) -> Path:
    """A run that succeeds, of processes that are forked; several of them are made faster by `several_runs.fit_all`."""
    fit_all(root.parent, {root.name: [strategy, *args]}, 1 if strategy == "single" else 2)
    return root


def start(root: Path, strategy: str, *args: object) -> subprocess.CompletedProcess[str]:
    """As a user starts it: with one process for `single`, else with two; strategies are files of configs/strategy."""
    devices = 1 if strategy == "single" else 2
    command = [sys.executable, "-m", "dirl.cli", "fit", *map(str, args), *FAST]
    command += ["--config", str(CONFIGS / "strategy" / f"{strategy}.yaml"), f"--trainer.devices={devices}"]
    command += [f"--trainer.default_root_dir={root}"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert (devices == 2) == ("MEMBER: 2/2" in done.stderr + done.stdout)
    return done
