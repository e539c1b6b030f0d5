"""Two processes with a user's defaults, bars and loggers on, and all callbacks together.

Every collective of each rank is recorded and compared, see `recorded_collectives`.
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from statistics import fmean

import pytest
from tests.integration.recorded_collectives import compare
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

from dirl.evaluation.results import read_results

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
CALLBACKS = """
evaluate:
  decoding: {greedy: {temperature: 0, max_response_tokens: 8}, drawn: {max_response_tokens: 8}}
  every_n_epochs: 1
samples: {every_n_epochs: 1, count: 2}
throughput: {peak_tflops: 1.0}
"""
TASKS = """
  tasks:
    sums: {task: dirl.tasks.Arithmetic, limit: 5, samples: 3}
    one: {class_path: dirl.tasks.Arithmetic, init_args: {seed: 3, val_prompts: 1}}
"""
SFT_CALLBACKS = """
throughput: {peak_tflops: 1.0}
trainer:
  callbacks+:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_top_k: -1, monitor: null}
"""


def fit(root: Path, strategy: str, *args: object) -> str:
    """`dirl fit` on two processes, as a user starts it but for the records; returns what it printed."""
    records = root.parent / "collectives"
    command = [sys.executable, "-m", "tests.integration.recorded_collectives", str(records), "fit", *map(str, args)]
    command += ["--config", str(CONFIGS / "strategy" / f"{strategy}.yaml"), "--trainer.devices=2"]
    command += [f"--trainer.default_root_dir={root}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    terminal, theirs = pty.openpty()  # bars are drawn on terminals alone
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    run = subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    until = time.monotonic() + 200
    said = ""
    while chunk := read(terminal, until - time.monotonic()):
        said += chunk.decode("utf-8", "replace")
    os.close(terminal)
    if time.monotonic() > until:
        os.killpg(run.pid, signal.SIGKILL)  # the second process too
        compare(records)
        pytest.fail(f"no end within 200 s: {said[-3000:]}")
    run.wait(30)
    assert run.returncode == 0, said[-6000:]
    assert "MEMBER: 2/2" in said
    assert "sync_dist" not in said
    assert compare(records) > 20
    return said


def read(terminal: int, seconds: float) -> bytes:
    """What a terminal shows next; nothing when its last process has ended, or the time has passed."""
    if not select.select([terminal], [], [], max(seconds, 0))[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that nobody holds the other side any more
        return b""


THOROUGH = [pytest.param("hybrid", marks=pytest.mark.thorough), pytest.param("fsdp_tp", marks=pytest.mark.thorough)]
WITH_TASKS = [("ddp", TASKS), ("fsdp", ""), pytest.param("fsdp_tp", TASKS, marks=pytest.mark.thorough)]


@pytest.mark.parametrize(("strategy", "tasks"), WITH_TASKS)
def test_rl_with_all_callbacks_bars_and_loggers(strategy: str, tasks: str, tmp_path: Path) -> None:
    data = write_rl(tmp_path / "rl.jsonl")
    callbacks = CALLBACKS.replace("  every_n_epochs: 1\n", f"  every_n_epochs: 1{tasks or chr(10)}")
    overlay = rl_overlay(tmp_path / "overlay.yaml", rollout="dynamic_sampling: false", more=callbacks)
    args = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    root = tmp_path / "run"
    said = fit(root, strategy, *args, f"--data.init_args.val={data}")
    assert "Epoch 1" in said  # the bar was on
    assert len(metrics(root, "train/loss")) == 4
    assert len(metrics(root, "rollout/reward")) == 2
    assert len(metrics(root, "throughput/step_s")) == 4
    evaluations = json.loads(next(root.glob("logs/version_0/evaluation.json")).read_text())
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert f"eval/{'one/' if tasks else ''}drawn/accuracy" in evaluations[0]
    whole = [read_results(root / "logs/version_0/evaluations" / f"step-{step}") for step in (0, 2, 4)]
    for result in (result for results in whole for result in results):
        found = result.read_problems()  # of both processes
        assert len({p.prompt_id for p in found}) == len(found) == result.settings["prompts"]["count"]
        assert fmean(p.accuracy for p in found) == pytest.approx(result.metrics["accuracy"])
    assert (root / "model" / "config.json").exists()


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.thorough), "fsdp", *THOROUGH])
def test_sft_with_validation_all_callbacks_bars_and_loggers(strategy: str, tmp_path: Path) -> None:
    data, callbacks = write_sft(tmp_path / "sft.jsonl"), tmp_path / "callbacks.yaml"
    callbacks.write_text(SFT_CALLBACKS)
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", callbacks, f"--data.init_args.train={data}"]
    args += [f"--data.init_args.val={data}", "--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"]
    args += ["--data.init_args.num_workers=1"]
    root = tmp_path / "run"
    said = fit(root, strategy, *args)
    assert "Epoch 0" in said
    assert len(metrics(root, "train/loss")) == 4
    assert len(metrics(root, "val/nelbo_per_token")) == 2
    assert len(metrics(root, "throughput/step_s")) == 4
    assert (root / "model" / "config.json").exists()
