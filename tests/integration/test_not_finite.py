"""Numbers that are not finite in whole runs: they never reach the weights, and a run in which they come is the same
whether it was interrupted or not."""

import re
from pathlib import Path

import pytest
import torch
from tests.integration.identity import assert_identical, checkpoint, differences, state
from tests.integration.one_run import start
from tests.integration.test_runs import CONFIGS, fit, rl_args, weights
from tests.integration.toy import metrics, write_sft

from dirl.finite import NotFiniteError
from dirl.modules.guard import load_batch

SAVER = """trainer:
  callbacks+:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_top_k: -1, filename: "{step}"}
"""


def sft_args(tmp_path: Path, poisoned: list[int], *more: str) -> list[object]:
    data, saver = write_sft(tmp_path / "sft.jsonl"), tmp_path / "saver.yaml"
    saver.write_text(SAVER)
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", saver, f"--data.init_args.train={data}"]
    args += ["--model.class_path=tests.integration.poisoned.PoisonedSFT", f"--model.init_args.poisoned={poisoned}"]
    return [*args, "--model.init_args.optimizer={schedule: cosine, warmup_steps: 1, lr: 1e-3}", *more]


def test_a_step_that_is_not_finite_changes_nothing_but_its_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fit(tmp_path / "run", *sft_args(tmp_path, [3]))
    checkpoints = [state(checkpoint(root, step)) for step in (1, 2, 3, 4)]
    # max_steps counts updates: four of them, in five batches
    assert [c["dirl"]["position"]["batches"] for c in checkpoints] == [1, 2, 4, 5]
    assert [c["dirl"]["skipped"] for c in checkpoints] == [{"in_row": 0, "in_all": skipped} for skipped in (0, 0, 1, 1)]
    assert [c["lr_schedulers"][0]["last_epoch"] for c in checkpoints] == [1, 2, 3, 4]
    assert metrics(root, "train/skipped_steps") == [0, 0, 1, 1, 1]
    losses = metrics(root, "train/loss")
    assert losses[1] == losses[2] and len(set(losses)) == 4  # Lightning repeats what a batch does not log
    for name in ("metrics.csv", "config.yaml"):
        assert "nan" not in (root / "logs" / "version_0" / name).read_text().lower()

    (path,) = (root / "logs" / "version_0" / "not_finite").iterdir()
    said = next(r.getMessage() for r in caplog.records if "not both finite" in r.getMessage())
    assert "after 2 optimizer steps: loss nan" in said and "1 in all, 1 in a row of at most 10" in said
    assert str(path) in said
    step, found = load_batch(path)
    assert path.name == "batch3-rank0.pt"
    assert (found["batch"], found["global_step"], found["epoch"], found["rank"]) == (3, 2, 0, 0)
    assert found["losses"].isnan().all() and len(found["losses"]) == len(step.micro_batches)
    # the batch is the one that the third step of a run without a fault learns from
    whole = fit(tmp_path / "whole", *sft_args(tmp_path, []), "--model.init_args.max_skipped_steps=0")
    assert not (whole / "logs" / "version_0" / "not_finite").exists()
    assert not differences(checkpoints[1]["state_dict"], state(checkpoint(whole, 2))["state_dict"])
    assert differences(checkpoints[2]["state_dict"], state(checkpoint(whole, 3))["state_dict"])
    assert step.sequences == 8 and step.loss_divisor > 0


@pytest.mark.parametrize("resumed_at", [1, 2, 3])
def test_a_run_with_skipped_steps_is_the_same_if_it_is_resumed(tmp_path: Path, resumed_at: int) -> None:
    """Four batches an epoch (two steps, gone through twice): one in the middle and one at the end are skipped."""
    args = [*rl_args(tmp_path), "--data.init_args.passes=2", "--trainer.max_epochs=2"]
    args += ["--model.class_path=tests.integration.poisoned.PoisonedDiPO", "--model.init_args.poisoned=[2, 4]"]
    whole = fit(tmp_path / "whole", *args)
    assert state(checkpoint(whole, 6))["dirl"]["skipped"]["in_all"] == 2
    resumed = fit(tmp_path / "resumed", *args, f"--ckpt_path={checkpoint(whole, resumed_at)}")
    assert_identical(whole, resumed, 6)
    assert all(value.isfinite().all() for value in weights(resumed).values())
    assert max(metrics(whole, "rollout/stale_groups")) == 0  # the policy version stays with the weights


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    args = sft_args(tmp_path, [1, 3, 4], "--model.init_args.max_skipped_steps=1")
    with pytest.raises(NotFiniteError, match=r"for the 2th step in a row \(max_skipped_steps=1\)") as error:
        fit(tmp_path / "run", *args)
    path = re.search(r"is in (\S+)", str(error.value))[1]
    assert load_batch(path)[1]["batch"] == 4
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.thorough), "fsdp"])
def test_both_processes_skip_a_step_that_is_not_finite_on_one(tmp_path: Path, strategy: str) -> None:
    done = start(tmp_path / "run", strategy, *sft_args(tmp_path, [2, 4, 5], "--model.init_args.rank=1"),
                 "--model.init_args.max_skipped_steps=1")  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "for the 2th step in a row" in done.stderr
    assert metrics(tmp_path / "run", "train/skipped_steps") == [0, 1, 1, 2]
    kept = tmp_path / "run" / "logs" / "version_0" / "not_finite"
    assert sorted(p.name for p in kept.iterdir()) == [f"batch{b}-rank{r}.pt" for b in (2, 4, 5) for r in (0, 1)]
    assert load_batch(kept / "batch4-rank0.pt")[1]["losses"].isfinite().all()
    assert load_batch(kept / "batch4-rank1.pt")[1]["losses"].isnan().any()


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    args = sft_args(tmp_path, [2], f"--data.init_args.val={tmp_path / 'sft.jsonl'}")
    with pytest.raises(NotFiniteError, match="validation after 1 optimizer steps: the loss is not finite"):
        fit(tmp_path / "run", *args, "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2")


def test_a_batch_that_cannot_be_kept_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        root = fit(tmp_path / "run", *sft_args(tmp_path, [3]), "--trainer.enable_checkpointing=false",
                   "--trainer.callbacks=null")  # fmt: skip
    assert "could not be kept" in caplog.text and "No space left" in caplog.text
    assert metrics(root, "train/skipped_steps")[-1] == 1
