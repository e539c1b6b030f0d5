"""How long `dirl` takes to answer: help, errors of the command line and of configs, and what its imports take."""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import record

CONFIG = str(Path(__file__).parents[1] / "configs" / "debug" / "rl.yaml")
IMPORTS = ("jsonargparse", "torch", "transformers", "lightning.pytorch.cli", "dirl.cli.fit")


def seconds(args: Sequence[str], times: int) -> dict[str, float]:
    """User CPU and wall seconds of a process, the least of some: other work on the machine adds to both."""
    found = []
    for _ in range(times):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), os.times().elapsed
        subprocess.run([sys.executable, *args], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((after.ru_utime - before.ru_utime, os.times().elapsed - began))
    return {"cpu_s": min(cpu for cpu, _ in found), "wall_s": min(wall for _, wall in found)}


def cases(folder: Path) -> dict[str, list[str]]:
    """What is asked, by name."""
    unknown, nested = folder / "unknown.yaml", folder / "nested.yaml"
    unknown.write_text("trainer: {max_stps: 1}\n", encoding="utf-8")
    nested.write_text("model: {init_args: {decodin: 1}}\n", encoding="utf-8")
    dirl = ["-m", "dirl.cli"]
    fit = [*dirl, "fit", "--config", CONFIG]
    return {
        "dirl --help": [*dirl, "--help"],
        "dirl fit --help": [*dirl, "fit", "--help"],
        "dirl evaluate --help": [*dirl, "evaluate", "--help"],
        "a config that is not there": [*dirl, "fit", "--config", "nowhere.yaml"],
        "an unknown option in a config": [*fit, "--config", str(unknown)],
        "an unknown option of a class in a config": [*fit, "--config", str(nested)],
        "an unknown class": [*fit, "--engine", "dirl.rollout.Torch"],
        "a value of fit that is no number": [*fit, "--trainer.max_epochs", "x"],
        "a value of fit that is out of range": [*fit, "--rollout.oversample", "-1"],
        "a value of evaluate that is no number": [*dirl, "evaluate", "--samples", "x"],
        "a value of serve that is no number": [*dirl, "serve", "--port", "x"],
        "dirl fit --model.help RLModule": [*dirl, "fit", "--model.help", "dirl.modules.RLModule"],
        **{f"import {name}": ["-c", f"import {name}"] for name in IMPORTS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="help alone, once")
    small = parser.parse_args(arguments).dry_run
    with tempfile.TemporaryDirectory() as folder:
        asked = list(cases(Path(folder)).items())[: 1 if small else None]
        rows = [{"what": name, **seconds(args, 1 if small else 3)} for name, args in asked]
    record.show("seconds to an answer", ["what", "CPU", "wall"], [list(row.values()) for row in rows])
    print("written to", record.save("startup", {"times": 1 if small else 3}, rows))


if __name__ == "__main__":
    main()
