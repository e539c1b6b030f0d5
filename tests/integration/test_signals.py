"""SIGTERM and Ctrl-C, as a user or a cluster sends them, to runs that were started from the command line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

from dirl.checkpoints.reading import read

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
EVALUATE = "evaluate: {decoding: {greedy: {temperature: 0, max_response_tokens: 8}}, every_n_epochs: 1}"


def start(root: Path, *args: object, processes: int = 1, strategy: str = "ddp") -> subprocess.Popen:
    """`dirl fit` in a process group of its own, its output in a file beside the run's folder."""
    command = [sys.executable, "-m", "dirl.cli", "fit", *map(str, args), f"--trainer.default_root_dir={root}"]
    if processes > 1:
        command += ["--config", str(CONFIGS / "strategy" / f"{strategy}.yaml"), f"--trainer.devices={processes}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with output(root).open("w") as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def output(root: Path) -> Path:
    return root.with_suffix(".txt")


def wait_for(root: Path, text: str, run: subprocess.Popen) -> None:
    wait_until(root, lambda: text in output(root).read_text(), run)


def wait_for_step(root: Path, step: int, run: subprocess.Popen) -> None:
    """Until the checkpoint of an optimizer step is there."""
    wait_until(root, lambda: any(root.glob(f"logs/version_0/checkpoints/*step={step}.ckpt")), run)


def wait_until(root: Path, done: Callable[[], bool], run: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not done():
        assert run.poll() is None and time.monotonic() < until, output(root).read_text()[-3000:]
        time.sleep(0.1)


def end(run: subprocess.Popen, root: Path, limit: float = 30) -> str:
    """What it printed, once it has ended; none of it lives on, but a moment the workers of one that was killed."""
    try:
        run.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    until = time.monotonic() + 10
    while lives(run.pid):
        assert time.monotonic() < until, "a process of the run lives on"
        time.sleep(0.1)
    return output(root).read_text()


def lives(group: int) -> bool:
    """Whether a process group has any process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def rl_args(tmp_path: Path, rollout: str = "") -> list[object]:
    data = write_rl(tmp_path / "rl.jsonl")
    overlay = rl_overlay(tmp_path / "overlay.yaml", rollout=rollout, more=EVALUATE)
    args = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    return [*args, f"--data.init_args.val={data}", "--trainer.max_epochs=500"]


@pytest.mark.parametrize(
    ("number", "code", "to_group", "processes", "strategy"),
    [
        (signal.SIGTERM, 143, False, 1, "single"),
        (signal.SIGINT, 130, True, 2, "ddp"),
        (signal.SIGTERM, 143, False, 2, "fsdp"),
        pytest.param(signal.SIGUSR1, 138, False, 2, "fsdp_tp", marks=pytest.mark.thorough),
        pytest.param(signal.SIGINT, 130, True, 2, "hybrid", marks=pytest.mark.thorough),
    ],
)
def test_a_signal_ends_rl_with_a_checkpoint_and_a_line_that_goes_on(
    number: int, code: int, to_group: bool, processes: int, strategy: str, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    run = start(root, *rl_args(tmp_path), processes=processes, strategy=strategy)
    wait_for_step(root, 4, run)
    (os.killpg if to_group else os.kill)(run.pid, number)
    said = end(run, root)
    assert run.returncode == code
    lines = said.strip().splitlines()
    assert lines[-2].endswith(f"stopped by {signal.Signals(number).name}")
    assert lines[-1].startswith("go on with: lightning run fit ")
    assert lines[-1].endswith(f"--ckpt_path {root / 'stopped.ckpt'}")
    assert "Traceback" not in said
    assert read(root / "stopped.ckpt").values["global_step"] >= 4
    assert not (root / "model").exists()


def test_ctrl_c_under_overlap_ends_the_rollout_under_way(tmp_path: Path) -> None:
    root = tmp_path / "run"
    args = rl_args(tmp_path, "        overlap: true\n")
    run = start(root, *args, "--objective.init_args.importance_cap=2.0", "--model.init_args.decoding.threshold=1.0")
    wait_for_step(root, 2, run)
    os.killpg(run.pid, signal.SIGINT)
    assert "stopped by SIGINT" in end(run, root)
    assert run.returncode == 130


def test_ctrl_c_ends_sft_with_workers_of_its_dataloader_and_the_run_goes_on(tmp_path: Path) -> None:
    data, root = write_sft(tmp_path / "sft.jsonl", 56), tmp_path / "run"
    args = ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}", "--trainer.max_steps=-1"]
    args += ["--data.init_args.num_workers=2", "--data.init_args.global_batch_size=8"]
    run = start(root, *args, "--trainer.max_epochs=5000")
    wait_for_step(root, 14, run)
    os.killpg(run.pid, signal.SIGINT)
    assert "stopped by SIGINT" in end(run, root)
    assert run.returncode == 130
    step = read(root / "stopped.ckpt").values["global_step"]
    assert len(metrics(root, "train/loss")) == step, "the last step's numbers are not lost"
    epochs = step // 7 + 1
    again = start(root, *args, f"--trainer.max_epochs={epochs}", "--ckpt_path", root / "stopped.ckpt")
    said = end(again, root, 120)
    assert again.returncode == 0, said[-3000:]
    assert read(next(root.glob(f"logs/*/checkpoints/*step={7 * epochs}*.ckpt"))).values["global_step"] == 7 * epochs


def test_a_signal_while_the_model_is_loaded_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "run"
    run = start(root, *rl_args(tmp_path))
    wait_for(root, "Seed set", run)
    os.kill(run.pid, signal.SIGTERM)
    said = end(run, root)
    assert run.returncode == 143
    assert "stopped by SIGTERM" in said and "go on with" not in said
    assert not list(root.glob("*.ckpt"))


def test_an_error_of_one_process_in_a_rollout_ends_both_with_a_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "run"
    args = rl_args(tmp_path)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(overlay.read_text().replace("integration.toy.Letters", "integration.engines.FailsOnSecondRank"))
    run = start(root, *args, processes=2)
    said = end(run, root, 120)
    assert run.returncode == 1
    assert "error: process 1 of 2 failed: reward 'fails_on_second_rank' failed on prompt_id=" in said
    assert said.count("go on with: ") == 1
    assert said.strip().endswith(f"--ckpt_path {root / 'error.ckpt'}")
    assert "Traceback" not in said
    assert read(root / "error.ckpt").values["global_step"] >= 2


def test_an_error_of_one_process_between_collectives_ends_both(tmp_path: Path) -> None:
    """The other one waits for the gather of the next weight, and not for a report."""
    root, args, overlay = tmp_path / "run", rl_args(tmp_path), tmp_path / "overlay.yaml"
    overlay.write_text(overlay.read_text().replace("dirl.rollout.TorchEngine", "tests.integration.engines.FailsInPush"))
    run = start(root, *args, processes=2, strategy="fsdp")
    said = end(run, root, 120)
    assert run.returncode != 0
    assert "error: the device is gone" in said
    assert not (root / "error.ckpt").exists()
    assert "--ckpt_path last" in said


def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    root = tmp_path / "run"
    run = start(root, *rl_args(tmp_path), processes=2)
    wait_for_step(root, 2, run)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    second = next(int(c) for c in children if "--trainer.devices=2" in Path(f"/proc/{c}/cmdline").read_text())
    os.kill(second, signal.SIGKILL)
    said = end(run, root, 60)
    assert run.returncode != 0
    assert "another process of this run has ended" in said or "Forcefully terminating" in said
