"""One run of `dirl fit` under a strategy, in processes of its own, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FAST = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def run(root: Path, strategy: str, *args: object) -> Path:
    """A run that succeeds; several are made faster by `several_runs.fit_all`."""
    done = start(root, strategy, *args)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def start(root: Path, strategy: str, *args: object) -> subprocess.CompletedProcess[str]:
    """With one process for `single`, else with two; strategies are files of configs/strategy."""
    devices = 1 if strategy == "single" else 2
    command = [sys.executable, "-m", "dirl.cli", "fit", *map(str, args), *FAST]
    command += ["--config", str(CONFIGS / "strategy" / f"{strategy}.yaml"), f"--trainer.devices={devices}"]
    command += [f"--trainer.default_root_dir={root}"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert (devices == 2) == ("MEMBER: 2/2" in done.stderr + done.stdout)
    return done
