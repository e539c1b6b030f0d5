"""Runs of the study, each in a process of its own on one thread; what is there is not made again."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.record import environment
from benchmarks.study.cases import CONFIGS, OBJECTIVES, TASKS, Case, Scale
from dirl.finite import dumps
from dirl.report.run_logs import columns, evaluations

NOISE = {"views_per_block": 1, "complementary": False, "t_min": 0.2, "t_max": 1.0}
"""Of SFT, which learns by other settings in the demo."""


def made(root: Path, cases: list[Case], scale: Scale, jobs: int) -> list[dict[str, Any]]:
    """Results of the cases, in their order; those that are not there yet are run, so many at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        models = sorted({(case.task, case.seed) for case in cases})
        list(pool.map(lambda pair: sft(root, scale, *pair), models))
        return list(pool.map(lambda case: rl(root, scale, case), cases))


def sft(root: Path, scale: Scale, task: str, seed: int) -> Path:
    """The model that RL starts from."""
    folder = root / "sft" / f"{task}-seed{seed}"
    if not (folder / "done.json").exists():
        heads = scale.width // 32
        shape: dict[str, object] = {
            "hidden_size": scale.width,
            "intermediate_size": 2 * scale.width,
            "num_attention_heads": heads,
        }
        shape |= {"num_key_value_heads": heads, "seed": seed}
        shape |= {"alphabet": TASKS[task].limits(seed).alphabet}
        args = ["--config", CONFIGS / "demo" / "sft.yaml", *of_task(task, seed)]
        args += [f"--model.init_args.source.init_args.{name}={value}" for name, value in shape.items()]
        args += ["--data.init_args.global_batch_size=64", "--data.init_args.token_budget=2048"]
        args += [f"--data.init_args.noise={json.dumps(NOISE)}", "--model.init_args.optimizer.lr=2.0e-3"]
        args += [f"--trainer.max_steps={scale.sft_steps}", f"--trainer.val_check_interval={scale.sft_steps // 4}"]
        result = fit(root, folder, args)
        (folder / "done.json").write_text(dumps(result, "done.json", indent=1), encoding="utf-8")
    return folder / "model"


def rl(root: Path, scale: Scale, case: Case) -> dict[str, Any]:
    """What an RL run brought and cost."""
    folder = root / "rl" / case.name
    done = folder / "done.json"
    if not done.exists():
        task, model = TASKS[case.task].limits(case.seed), sft(root, scale, case.task, case.seed)
        longest = f"max_response_tokens: {task.max_response_tokens}"
        evaluate = f"{{sampled: {{temperature: 1.0, {longest}}}, greedy: {{temperature: 0.0, {longest}}}}}"
        args = ["--config", CONFIGS / "demo" / "rl.yaml", *of_task(case.task, case.seed)]
        args += [f"--model.init_args.source.init_args.path={model}", f"--evaluate.decoding={evaluate}"]
        args += [f"--model.init_args.decoding.max_response_tokens={task.max_response_tokens}"]
        args += [f"--data.init_args.max_prompt_tokens={task.max_prompt_tokens}", *scale.evaluations(case.seed)]
        args += [*OBJECTIVES[case.objective].args(), f"--model.init_args.optimizer.lr={case.lr}"]
        clock = folder / "processor_seconds.json"
        args += ["--trainer.profiler=benchmarks.study.clock.ProcessorClock", f"--trainer.profiler.path={clock}"]
        args += [f"--trainer.max_epochs={scale.rollouts}", "--data.init_args.prompts_per_rollout=8"]
        args += ["--data.init_args.token_budget=2048"]
        result = vars(case) | fit(root, folder, args) | numbers(folder) | processor_seconds(clock, folder)
        done.write_text(dumps(result, str(done), indent=1), encoding="utf-8")
        shutil.rmtree(folder / "model")  # of many runs, and nothing asks for them
    return json.loads(done.read_text(encoding="utf-8"))


def of_task(task: str, seed: int) -> list[object]:
    overlay = CONFIGS / "task" / "arithmetic.yaml"  # which says all that a task changes beside itself
    return ["--config", overlay, *TASKS[task].args(seed), f"--seed_everything={seed}"]


def fit(root: Path, folder: Path, args: list[object]) -> dict[str, Any]:
    """`dirl fit` into a folder, where what a run cut off had left is removed; RuntimeError with its last lines.

    In the command that is kept, paths begin at the root of the study.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
    command = [sys.executable, "-m", "dirl.cli", "fit", *map(str, args), *quiet]
    started = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | threads)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        said = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"{' '.join(command)}\nended with status {status}:\n{said[-2000:]}")
    processor = usage.ru_utime + usage.ru_stime
    environs = {name: environment()[name] for name in ("date", "commit", "cpu")}
    told = [word.replace(f"{CONFIGS}/", "configs/").replace(f"{root}/", "") for word in command[1:]]
    return {"command": told, "wall_s": time.perf_counter() - started, "processor_s": processor} | environs


def numbers(folder: Path) -> dict[str, Any]:
    """Of a run's logs: evaluations, and sums over its optimizer steps."""
    steps = columns(folder, {"train/packed_tokens": "tokens", "train/entropy": "entropy"})
    rollouts = columns(folder, {"rollout/reward": "reward"})
    entropy = [row["entropy"] for row in steps if "entropy" in row]

    return {
        "evaluations": evaluations(folder),
        "optimizer_steps": sum("tokens" in row for row in steps),
        "trained_tokens": sum(row.get("tokens", 0.0) for row in steps),
        "rewards": [row["reward"] for row in rollouts if "reward" in row],
        "entropy": {"first": entropy[0], "last": entropy[-1]} if entropy else None,
    }


def processor_seconds(clock: Path, folder: Path) -> dict[str, float]:
    """Of training (the old policy's scores and values of a rollout included), of rollouts, and of evaluations.

    The hook of a rollout holds both; it is divided as its parts are on the wall clock.
    """
    spent = json.loads(clock.read_text(encoding="utf-8"))
    parts = {f"time/{name}_s": name for name in ("push", "rollout", "score")}
    walls = columns(folder, parts)
    wall = {name: sum(row.get(name, 0.0) for row in walls) for name in parts.values()}
    scores = spent["rollout"] * wall["score"] / sum(wall.values())
    return {
        "train_s": spent["train"] + spent["batch"] + scores,
        "rollout_s": spent["rollout"] - scores,
        "evaluate_s": spent["evaluate"],
    }
