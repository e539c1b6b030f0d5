"""Several runs of `dirl` one after the other in the same processes: imports and their start are paid once.

    python -m tests.integration.several_runs RUNS.json

Lightning starts the second process with the first run that asks for two; both then make all runs together.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STRATEGIES = ROOT / "configs" / "strategy"


def fit_all(folder: Path, runs: Mapping[str, Sequence[object]], processes: int) -> None:
    """Make runs that all succeed.

    Args:
        folder: each run's folder is in it, under its name.
        runs: for each name its strategy (a file of configs/strategy) and the arguments of `fit`.
    """
    commands = []
    for name, (strategy, *args) in runs.items():
        command = ["fit", *map(str, args), "--trainer.enable_progress_bar=false", f"--trainer.devices={processes}"]
        command += ["--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder / name}"]
        commands.append([*command[:-4], "--config", str(STRATEGIES / f"{strategy}.yaml"), *command[-4:]])
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "runs.json"
    listed.write_text(json.dumps(commands), encoding="utf-8")
    command = [sys.executable, "-m", "tests.integration.several_runs", str(listed)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-5000:]
    assert (processes == 2) == ("MEMBER: 2/2" in said)


if __name__ == "__main__":
    from dirl.cli.main import main  # not above: who starts the runs need not load it

    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        print(*arguments, flush=True)
        main(arguments)
