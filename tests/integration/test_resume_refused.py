"""`--ckpt_path last`, checkpoints of something else, damaged ones, and settings that act on resume."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.integration.identity import checkpoint
from tests.integration.test_resume import SAVER, same_weights, sft_args
from tests.integration.test_runs import fit, rl_args
from tests.integration.toy import metrics

from dirl.checkpoints.files import clear_leftovers, part_of
from dirl.checkpoints.whole_files import WholeFiles


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of each stage, `sft` and `rl`."""
    folder = tmp_path_factory.mktemp("done")
    fit(folder / "sft", *sft_args(folder))
    fit(folder / "rl", *rl_args(folder))
    return folder


def refusal(tmp_path: Path, args: list[object], path: Path | str) -> str:
    with pytest.raises(ValueError) as caught:
        fit(tmp_path / "run", *args, f"--ckpt_path={path}")
    assert not (tmp_path / "run" / "model").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_stage_or_model_is_refused_in_one_line(done: Path, tmp_path: Path) -> None:
    of_sft, of_rl = checkpoint(done / "sft", 2), checkpoint(done / "rl", 2)
    assert "is of a run with SFTModule, this one has RLModule" in refusal(tmp_path, rl_args(done), of_sft)
    assert "is of a run with RLModule, this one has SFTModule" in refusal(tmp_path, sft_args(done), of_rl)
    wider = [*sft_args(done), "--model.init_args.source.init_args.hidden_size=64"]
    text = refusal(tmp_path, wider, of_sft)
    assert "is of another model: model.backbone" in text and "32" in text and "64" in text
    deeper = [*sft_args(done), "--model.init_args.source.init_args.num_hidden_layers=3"]
    assert "weights are in only one of them" in refusal(tmp_path, deeper, of_sft)


def test_what_is_no_checkpoint_is_refused_in_one_line(done: Path, tmp_path: Path) -> None:
    args = sft_args(done)
    assert "is a Hugging Face model and no checkpoint" in refusal(tmp_path, args, done / "sft" / "model")
    weights = done / "sft" / "model" / "model.safetensors"
    assert "is a Hugging Face model and no checkpoint" in refusal(tmp_path, args, weights)
    assert "there is no such file" in refusal(tmp_path, args, tmp_path / "nowhere.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "is no checkpoint of dirl" in refusal(tmp_path, args, tmp_path / "foreign.ckpt")
    whole = checkpoint(done / "sft", 2).read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.ckpt").write_bytes(whole[:cut])
        assert "cut.ckpt is damaged" in refusal(tmp_path, args, tmp_path / "cut.ckpt")


def test_last_is_the_newest_whole_one_of_all_starts_of_the_run(
    done: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    root = tmp_path / "sft"
    shutil.copytree(done / "sft", root)
    newer = root / "logs" / "version_7" / "checkpoints"
    newer.mkdir(parents=True)
    whole = checkpoint(done / "sft", 3).read_bytes()
    wrong = bytearray(whole)
    wrong[len(whole) // 2] ^= 1
    places = {
        root / "stopped-step2.ckpt": checkpoint(done / "sft", 2).read_bytes(),
        newer / "flipped.ckpt": bytes(wrong),
        newer / "cut.ckpt": whole[:-7],
        part_of(newer / "step=4.ckpt"): whole[:-7],
    }
    for number, (path, contents) in enumerate(places.items()):
        path.write_bytes(contents)
        os.utime(path, (2e9 + number, 2e9 + number))
    fit(root, *sft_args(done), "--ckpt_path=last")
    said = [str(warning.message) for warning in recwarn]
    for name in ("flipped.ckpt is damaged", "cut.ckpt is damaged"):
        assert any(name in text and "passes over it" in text for text in said), said
    assert {int(step) for step in metrics(root, "step")} == {1, 2, 3}  # that of the checkpoint's step again
    assert same_weights(done / "sft", root)


def test_last_without_a_checkpoint_says_where_it_looked(done: Path, tmp_path: Path) -> None:
    text = refusal(tmp_path, sft_args(done), "last")
    assert "there is no checkpoint" in text and str(tmp_path / "run" / "*.ckpt") in text


def test_a_learning_rate_on_the_command_line_acts_on_resume(
    done: Path, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    args = [*sft_args(done), "--model.init_args.optimizer.schedule=constant"]
    fit(tmp_path / "one", *args)
    faster = [*args, "--model.init_args.optimizer.lr=0.01", "--model.init_args.optimizer.weight_decay=0.5"]
    root = fit(tmp_path / "two", *faster, f"--ckpt_path={checkpoint(tmp_path / 'one', 2)}")
    assert metrics(root, "train/lr") == pytest.approx([0.001, 0.01, 0.01])  # the first is the checkpoint's
    saved = torch.load(checkpoint(root, 4), weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert (saved["lr"], saved["weight_decay"]) == (0.01, 0.5)
    said = caplog.text + "".join(capfd.readouterr())
    assert "lr 0.001 -> 0.01, weight_decay 0.0 -> 0.5" in said
    assert "resumed with another model.init_args.optimizer.lr: 0.001 in the checkpoint, now 0.01" in said


def test_a_longer_cosine_is_followed_from_where_the_run_stands(done: Path, tmp_path: Path) -> None:
    longer = [*sft_args(done), "--trainer.max_steps=8"]
    resumed = fit(tmp_path / "resumed", *longer, f"--ckpt_path={checkpoint(done / 'sft', 2)}")
    whole = fit(tmp_path / "whole", *longer)
    assert metrics(resumed, "train/lr")[1:] == metrics(whole, "train/lr")[2:]


def test_an_error_in_a_rollout_saves_a_checkpoint_that_skips_no_epoch(done: Path, tmp_path: Path) -> None:
    saver = tmp_path / "saver.yaml"
    saver.write_text(SAVER.replace("every_n_train_steps: 1", "every_n_train_steps: 100, save_on_exception: true"))
    text = (done / "overlay.yaml").read_text()
    engine = "{class_path: tests.integration.engines.LostEngine, init_args: {lost_at: 1}}"
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("{class_path: dirl.rollout.TorchEngine}", engine))
    args = rl_args(done)
    with pytest.raises(RuntimeError, match="every server is gone"):
        fit(tmp_path / "run", *args, "--config", broken, "--config", saver)
    root = fit(tmp_path / "run", *args, "--ckpt_path=last")
    assert same_weights(done / "rl", root)


def test_a_killed_write_leaves_nothing_that_is_read_and_is_cleared_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    pid = os.fork()
    if not pid:
        part = part_of(folder / "step=1.ckpt")
        part.write_bytes(b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    mine = part_of(folder / "step=9.ckpt")
    mine.write_bytes(b"another write of this process")
    assert len(list(folder.glob(".*.part"))) == 2
    WholeFiles().save_checkpoint({"a": 1}, folder / "step=2.ckpt")
    assert sorted(path.name for path in folder.iterdir()) == sorted([mine.name, "step=2.ckpt"])
    assert clear_leftovers(folder) == []
