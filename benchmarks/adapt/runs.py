"""SFT runs of the comparison, each by `dirl fit` within the calling process; what is there is not made again."""

import json
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.adapt import autoregressive
from benchmarks.adapt.cases import BLOCK_SIZE, CONFIGS, HELD_OUT, SHAPE, Arm, Scale
from benchmarks.record import environment
from dirl.cli.main import main
from dirl.finite import dumps
from dirl.report.run_logs import columns
from dirl.tasks import Countdown

BOUND = {"val/nelbo_per_token": "nelbo"}


def made(root: Path, scale: Scale, arm: Arm, seed: int) -> dict[str, Any]:
    """The bound on held-out conversations as training goes on, and what that cost."""
    folder = root / f"{arm.name.replace(',', '').replace(' ', '-')}-seed{seed}"
    done = folder / "done.json"
    if not done.exists():
        args = options(root, scale, arm, seed)
        begun = at_start(root, scale, arm.adapted, seed)
        result = run(root, folder, "fit", args)
        found = columns(folder, BOUND | {"train/packed_tokens": "packed"})
        curve = [{"step": row["step"] + 1, "nelbo": row["nelbo"]} for row in found if "nelbo" in row]
        result |= {"arm": arm.name, "seed": seed, "curve": [{"step": 0, "nelbo": begun}, *curve]}
        result["packed_tokens"] = (
            fmean(row["packed"] for row in found if "packed" in row) * scale.steps
        )  # some are logged
        done.write_text(dumps(result, str(done), indent=1), encoding="utf-8")
        shutil.rmtree(folder / "model")
    return json.loads(done.read_text(encoding="utf-8"))


def at_start(root: Path, scale: Scale, adapted: bool, seed: int) -> float:
    """The bound before the first step, which the schedule does not change."""
    folder = root / f"start-{'ar' if adapted else 'scratch'}-seed{seed}"
    done = folder / "done.json"
    if not done.exists():
        run(root, folder, "validate", options(root, scale, Arm("", adapted, scheduled=False), seed))
        (row,) = columns(folder, BOUND)
        done.write_text(dumps({"nelbo": row["nelbo"]}, str(done)), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))["nelbo"]


def run(root: Path, folder: Path, command: str, args: list[object]) -> dict[str, Any]:
    """A command into a folder; what a run cut off had left is removed. In what is kept, paths begin at the root."""
    shutil.rmtree(folder, ignore_errors=True)
    words = [command, *map(str, args), "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
    started, wall = time.process_time(), time.perf_counter()
    main(words)
    told = [word.replace(f"{CONFIGS}/", "configs/").replace(f"{root}/", "") for word in words]
    spent = {"processor_s": time.process_time() - started, "wall_s": time.perf_counter() - wall}
    return {"command": told, **spent} | {each: environment()[each] for each in ("date", "commit", "cpu")}


def options(root: Path, scale: Scale, arm: Arm, seed: int) -> list[object]:
    """Of `dirl fit`: the demo's first stage with another task, other sizes, and the arm's own."""
    args: list[object] = ["--config", CONFIGS / "demo" / "sft.yaml", f"--seed_everything={seed}"]
    args += ["--task=dirl.tasks.Countdown", f"--task.init_args.seed={seed}", f"--trainer.max_steps={scale.steps}"]
    args += [f"--task.init_args.solutions={scale.steps * scale.batch}", f"--task.init_args.val_solutions={HELD_OUT}"]
    args += [f"--trainer.val_check_interval={scale.steps // scale.evaluations}"]
    args += [f"--data.init_args.global_batch_size={scale.batch}", "--data.init_args.token_budget=4096"]
    args += [f"--model.init_args.optimizer.lr={scale.lr}"]
    if arm.adapted:
        autoregressive.made(root, scale, seed)
        source = {"path": root / f"autoregressive-seed{seed}" / "model", "pad_vocabulary_to": 1}
        args += ["--model.init_args.source=dirl.models.AutoregressiveModel"]
    else:
        source = {**SHAPE, "alphabet": Countdown.characters(), "seed": seed}
    args += [f"--model.init_args.source.init_args.{name}={value}" for name, value in source.items()]
    args += [f"--model.init_args.source.init_args.block_size={BLOCK_SIZE}"]
    if (schedule := arm.schedule(scale.steps)) is not None:
        args += [f"--data.init_args.block_schedule={schedule}"]
    return args
