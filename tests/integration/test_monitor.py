"""What a run says on its way: seeds, learning rates, metrics that other callbacks watch."""

from pathlib import Path

import pytest
import torch
from tests.integration.test_runs import CONFIGS, fit, rl_args, weights
from tests.integration.toy import metrics, write_rl, write_sft

from dirl.cli.log_folder import claim

EVALUATE = """
evaluate:
  decoding: {greedy: {temperature: 0, max_response_tokens: 8}}
  every_n_epochs: 1
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: eval/greedy/accuracy, mode: max, patience: 1, check_on_train_epoch_end: true}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: eval/greedy/accuracy, mode: max, every_n_epochs: 1, save_top_k: 1, filename: "best-{epoch}"}
"""


def test_metrics_of_evaluate_can_be_watched(tmp_path: Path) -> None:
    args = rl_args(tmp_path, more=EVALUATE)
    root = fit(
        tmp_path / "run", *args, f"--data.init_args.val={write_rl(tmp_path / 'val.jsonl', 4)}", "--trainer.max_epochs=9"
    )
    assert len(metrics(root, "train/loss")) == 4, "two epochs without getting better, then it stops"
    assert [path.name for path in root.glob("logs/version_0/checkpoints/best-*")] == ["best-epoch=0.ckpt"]
    assert len(metrics(root, "eval/greedy/accuracy")) == 3, "before, and after each epoch, once"


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_the_seed_of_the_run_decides_weights_data_and_noise(stage: str, tmp_path: Path) -> None:
    if stage == "rl":
        args = rl_args(tmp_path)
    else:
        args = [
            "--config",
            CONFIGS / "debug" / "sft.yaml",
            f"--data.init_args.train={write_sft(tmp_path / 'sft.jsonl')}",
        ]
    found = [
        weights(fit(tmp_path / f"{name}", *args, f"--seed_everything={seed}")) for name, seed in enumerate((0, 1, 1))
    ]
    name = next(iter(found[0]))
    assert not torch.equal(found[0][name], found[1][name])
    assert all(torch.equal(found[1][key], found[2][key]) for key in found[1])


def test_each_step_is_logged_with_its_own_learning_rate(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    args = ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}", "--trainer.max_steps=4"]
    schedule = "--model.init_args.optimizer={lr: 0.4, schedule: constant, warmup_steps: 2}"
    root = fit(tmp_path / "run", *args, schedule)
    assert metrics(root, "train/lr") == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_two_starts_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: claim(tmp_path / "logs"), range(40))) == list(range(40))
    (tmp_path / "logs" / "version_77").mkdir()
    (tmp_path / "logs" / "notes").mkdir()
    assert claim(tmp_path / "logs") == 78
