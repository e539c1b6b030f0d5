"""Chains of resumes of whole runs: what a resumed run writes is what the run in one go writes, to the bit."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from tests.integration.identity import assert_identical, checkpoint
from tests.integration.test_runs import CONFIGS, fit, rl_args
from tests.integration.toy import metrics, write_rl, write_sft
from tests.torture.leavings import compare_numbers

SAVER = (
    "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
    '      init_args: {every_n_train_steps: 1, save_top_k: -1, filename: "{step}"}\n'
)


def sft_args(tmp_path: Path) -> list[object]:
    """Four steps an epoch."""
    saver = tmp_path / "saver.yaml"
    saver.write_text(SAVER)
    data = write_sft(tmp_path / "sft.jsonl", 32)
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", saver, f"--data.init_args.train={data}"]
    return [*args, f"--data.init_args.val={data}", "--model.init_args.optimizer.schedule=cosine"]


def check_chain(whole: Path, args: list[object], points: list[int], last: int) -> None:
    """Resume the run at one point after the other, each of what the one before wrote."""
    before = whole
    for number, step in enumerate(points):
        resumed = whole.parent / f"{whole.name}-{points}-{number}"
        fit(resumed, *args, f"--ckpt_path={checkpoint(before, step)}")
        assert same_weights(whole, resumed)
        if step < last:
            assert metrics(resumed, "step")[-1] == last - 1
            assert metrics(resumed, "train/loss") == metrics(whole, "train/loss")[step - 1 :]  # its step's row again
            for later in range(step + 1, last + 1):
                assert_identical(whole, resumed, later)
        before = resumed


def same_weights(one: Path, two: Path) -> bool:
    """A finished run that is resumed exports too."""
    return (one / "model" / "model.safetensors").read_bytes() == (two / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("end", ["max_epochs=5", "max_steps=19"])
def test_sft_resumed_again_and_again(tmp_path: Path, end: str) -> None:
    args = [*sft_args(tmp_path), "--trainer.max_steps=-1", f"--trainer.{end}"]
    args += ["--trainer.val_check_interval=2"] if "steps" in end else []
    whole = fit(tmp_path / "whole", *args)
    last = 20 if "epochs" in end else 19
    check_chain(whole, args, [8, 14, 16], last)
    check_chain(whole, args, [3, 12, last], last)


def test_rl_resumed_again_and_again(tmp_path: Path) -> None:
    """Four steps an epoch; an evaluation at the start and after every second epoch."""
    evaluate = "evaluate: {decoding: {drawn: {max_response_tokens: 8}}, every_n_epochs: 2}"
    data = write_rl(tmp_path / "val.jsonl", 3)
    args = [*rl_args(tmp_path, rollout="oversample: 1.5", more=evaluate), f"--data.init_args.val={data}"]
    args += ["--objective.init_args.importance_cap=2"]
    args += ["--data.init_args.passes=2", "--trainer.max_epochs=8", "--objective.init_args.clip_low=0.01"]
    whole = fit(tmp_path / "whole", *args)
    assert max(metrics(whole, "train/grad_norm")) > 0
    check_chain(whole, args, [4, 12, 17], 32)
    check_chain(whole, args, [16, 24, 32], 32)


def test_an_overlapped_run_is_resumed_with_the_rollout_that_was_under_way(tmp_path: Path) -> None:
    args = [*rl_args(tmp_path, rollout="        overlap: true"), "--objective.init_args.importance_cap=2"]
    args += ["--trainer.max_epochs=4"]
    whole = fit(tmp_path / "whole", *args)
    check_chain(whole, args, [1, 2, 5], 8)


class Dies(Checkpoint):
    """As a kill would between the checkpoint of a step, or of an epoch, and its row: Lightning calls such ones last."""

    def __init__(self, step: int, epoch: int = -1) -> None:
        self.step, self.epoch = step, epoch

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")

    def on_train_epoch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("killed")


def died(option: str) -> str:
    return f"--trainer.callbacks+={{class_path: {__name__}.Dies, init_args: {{{option}}}}}"


def test_the_row_of_the_step_that_a_checkpoint_was_written_after_is_not_lost(tmp_path: Path) -> None:
    args = [*sft_args(tmp_path), "--trainer.max_steps=-1", "--trainer.max_epochs=2"]
    whole = fit(tmp_path / "whole", *args)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "run", *args, died("step: 2"))
    run = fit(tmp_path / "run", *args, f"--ckpt_path={checkpoint(tmp_path / 'run', 2)}")
    assert compare_numbers(whole, run) == []
    assert metrics(run, "train/loss") == metrics(whole, "train/loss")[1:]


def test_the_row_of_the_epoch_that_a_checkpoint_was_written_after_is_not_lost(tmp_path: Path) -> None:
    saver = tmp_path / "saver.yaml"
    saver.write_text(SAVER.replace("every_n_train_steps", "every_n_epochs"))
    args = [*rl_args(tmp_path), "--config", saver, "--checkpoint=null", "--trainer.max_epochs=2"]
    whole = fit(tmp_path / "whole", *args)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "run", *args, died("step: -1, epoch: 0"))
    run = fit(tmp_path / "run", *args, f"--ckpt_path={checkpoint(tmp_path / 'run', 2)}")
    assert compare_numbers(whole, run) == []
    assert metrics(run, "rollout/reward") == metrics(whole, "rollout/reward")


def test_a_finished_run_that_is_resumed_keeps_the_row_of_its_last_epoch(tmp_path: Path) -> None:
    saver = tmp_path / "saver.yaml"
    saver.write_text(SAVER.replace("every_n_train_steps: 1", "every_n_epochs: 1, save_last: true"))
    args = [*rl_args(tmp_path), "--config", saver, "--checkpoint=null", "--trainer.max_epochs=2"]
    run = fit(tmp_path / "run", *args)
    rows = [newest_last(run)["dirl"]["unlogged"]]
    for _ in range(2):
        fit(tmp_path / "run", *args, "--ckpt_path=last")
        rows.append(newest_last(run)["dirl"]["unlogged"])
    assert rows[0]["metrics"]["rollout/reward"] == metrics(run, "rollout/reward")[-1]
    assert rows == [rows[0]] * 3


def newest_last(run: Path) -> dict:
    path = max(run.glob("logs/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(("step", "epoch"), [(1, 0), (2, 0), (3, 1)])
def test_a_run_resumed_within_an_epoch_logs_the_rollout_of_that_epoch(
    step: int, epoch: int, tmp_path: Path, finished: Path
) -> None:
    """Also where nothing is left of the epoch but its end."""
    resumed = fit(tmp_path / "run", *rl_args(finished), f"--ckpt_path={checkpoint(finished / 'run', step)}")
    for name in ("rollout/reward", "rollout/response_length"):
        assert metrics(resumed, name) == metrics(finished / "run", name)[epoch:]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seed=1", r"data\.seed was 0, is 1"),
        ("group_size=2", r"data\.group_size was 4, is 2"),
        ("passes=2", r"data\.passes was 1, is 2"),
        ("train=OTHER", r"data\.train holds other rows than it did"),
    ],
)
def test_settings_that_would_change_the_run_in_silence_are_refused(
    tmp_path: Path, option: str, message: str, finished: Path
) -> None:
    other = write_rl(tmp_path / "other.jsonl", 17)
    args = [*rl_args(finished), f"--data.init_args.{option.replace('OTHER', str(other))}"]
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", *args, f"--ckpt_path={checkpoint(finished / 'run', 1)}")


def test_another_batch_of_sft_is_refused(tmp_path: Path) -> None:
    args = sft_args(tmp_path)
    fit(tmp_path / "run", *args)
    with pytest.raises(ValueError, match=r"data\.global_batch_size was 8, is 4; data\.noise was .*'t_min': 0\.001"):
        options = ["--data.init_args.global_batch_size=4", "--data.init_args.noise={t_min: 0.2}"]
        fit(tmp_path / "other", *args, *options, f"--ckpt_path={checkpoint(tmp_path / 'run', 2)}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished RL run in `run`."""
    folder = tmp_path_factory.mktemp("finished")
    fit(folder / "run", *rl_args(folder))
    return folder
