"""Whole runs of the debug recipes: SFT, RL, resume, rollout to a file and training from it, bad input."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft
from transformers import AutoTokenizer

from dirl.cli.main import main
from dirl.models import PretrainedModel
from dirl.reading import encoding
from dirl.trajectory_files import read_annotated, read_trajectories

CONFIGS = Path(__file__).parents[2] / "configs"


def fit(root: Path, *args: object) -> Path:
    main(["fit", *map(str, args), f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"])
    return root


def rl_args(tmp_path: Path, **options: str) -> list[object]:
    overlay = rl_overlay(tmp_path / "overlay.yaml", **options)
    data = write_rl(tmp_path / "rl.jsonl")
    return ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, f"--data.init_args.train={data}"]


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "model" / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            value, second[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_sft_lowers_the_loss_and_writes_a_model_that_loads(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    root = fit(
        tmp_path / "run",
        *("--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}", f"--data.init_args.val={data}"),
        *("--trainer.max_steps=40", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=20"),
        "--model.init_args.optimizer.lr=5e-3",
    )
    bound = metrics(root, "val/nelbo_per_token")
    assert len(bound) == 2
    assert bound[1] < bound[0] < 6.0
    description = PretrainedModel(str(root / "model")).describe()
    assert description.spec.block_size == 4
    assert AutoTokenizer.from_pretrained(root / "model").mask_token_id == description.spec.mask_token_id


def test_double_precision_trains_with_the_losses_of_single_precision(tmp_path: Path) -> None:
    sft = ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={write_sft(tmp_path / 'sft.jsonl')}"]
    rl = [*rl_args(tmp_path), "--objective.kl_coef=0.1"]
    for stage, args, first in (("sft", [*sft, "--trainer.max_steps=2"], 2), ("rl", rl, 1)):
        found = []
        for precision in ("32-true", "64-true"):
            root = fit(tmp_path / stage / precision, *args, f"--trainer.precision={precision}")
            found.append(metrics(root, "train/loss")[:first])
        assert found[1] == pytest.approx(found[0], abs=1e-5) and found[0] != found[1]


def test_sft_resumed_in_mid_epoch_ends_with_the_weights_of_one_go(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    saver = tmp_path / "saver.yaml"
    saver.write_text(
        "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        '      init_args: {every_n_train_steps: 1, save_top_k: -1, filename: "{step}"}\n'
    )
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", saver, f"--data.init_args.train={data}"]
    args += ["--trainer.max_steps=8"]  # five steps an epoch
    whole = fit(tmp_path / "whole", *args)
    for step in (3, 5, 7):
        checkpoint = whole / "logs" / "version_0" / "checkpoints" / f"step={step}.ckpt"
        resumed = fit(tmp_path / f"resumed{step}", *args, f"--ckpt_path={checkpoint}")
        assert_same(weights(whole), weights(resumed))


def test_data_encoded_on_disk_give_the_weights_of_data_in_memory_and_serve_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    args = [
        "--config",
        CONFIGS / "debug" / "sft.yaml",
        f"--data.init_args.train={data}",
        f"--data.init_args.val={data}",
    ]
    args += ["--data.init_args.max_tokens=40", "--trainer.max_steps=3"]  # some are dropped
    memory = fit(tmp_path / "memory", *args)
    monkeypatch.setattr(encoding, "SMALL_DATA", 0)
    first = fit(tmp_path / "first", *args, "--data.init_args.encode_workers=2", "--data.init_args.num_workers=1")
    monkeypatch.setattr(encoding.ConversationEncoder, "__call__", lambda *_: pytest.fail("encoded again"))
    second = fit(tmp_path / "second", *args)
    for root in (first, second):
        assert_same(weights(memory), weights(root))
    main(["validate", *map(str, args), f"--trainer.default_root_dir={tmp_path}"])


def test_activation_checkpointing_and_another_attention_do_not_change_the_weights(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    args = ["--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}"]
    plain = fit(tmp_path / "plain", *args)
    for option in ("activation_checkpointing=full", "attention=dense", "head_chunk=3"):
        other = fit(tmp_path / option, *args, f"--model.init_args.{option}")
        for name, value in weights(plain).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=0, atol=2e-5)


def test_rl_resumed_in_mid_epoch_ends_with_the_weights_of_one_go(tmp_path: Path) -> None:
    # passes=2: the old log-probs of the rollout must survive as well
    args = [*rl_args(tmp_path), "--data.init_args.passes=2", "--objective.init_args.clip_low=0.01"]
    whole = fit(tmp_path / "whole", *args)
    assert metrics(whole, "step")[-1] == 7
    assert max(metrics(whole, "train/grad_norm")) > 0
    assert max(metrics(whole, "train/clip_fraction")) > 0
    for step in (1, 3, 4, 6):
        checkpoint = whole / "logs" / "version_0" / "checkpoints" / f"step={step}.ckpt"
        resumed = fit(tmp_path / f"resumed{step}", *args, f"--ckpt_path={checkpoint}")
        assert_same(weights(whole), weights(resumed))


def test_rl_logs_what_a_researcher_looks_at(tmp_path: Path) -> None:
    root = fit(tmp_path / "run", *rl_args(tmp_path), "--objective.init_args.kl_coef=0.1")
    for name in (
        "reward",
        "reward/letters",
        "accuracy",
        "response_length",
        "truncated",
        "tokens_per_step",
        "pass_at_4",
    ):
        assert len(metrics(root, f"rollout/{name}")) == 2, name
    for name in ("loss", "grad_norm", "entropy", "ratio", "clip_fraction", "reference_kl", "mismatch_kl", "lr"):
        assert len(metrics(root, f"train/{name}")) == 4, name
    for name in ("generate_s", "push_s", "reward_s", "score_s"):
        assert len(metrics(root, f"time/{name}")) == 2, name
    assert metrics(root, "train/reference_kl")[0] == pytest.approx(0, abs=1e-6)
    assert metrics(root, "train/reference_kl")[-1] > 0
    assert metrics(root, "train/mismatch_abs")[0] < 1e-5
    assert (root / "logs" / "version_0" / "config.yaml").exists()
    assert list((root / "logs" / "version_0").glob("events.*"))


def test_a_run_from_its_own_trajectories_gives_the_same_weights(tmp_path: Path) -> None:
    """With words beside the ids, which the replay does not look at."""
    saved = tmp_path / "trajectories"
    args = [
        *rl_args(tmp_path, rollout=f"        save_trajectories: {saved}\n        save_texts: true"),
        "--objective.init_args.importance_cap=2",
    ]
    first = fit(tmp_path / "first", *args, "--trainer.max_epochs=1")
    path = saved / "epoch0000-rank0.jsonl"
    assert len(list(read_trajectories(path))) == 16
    assert all(words.question and words.ground_truth for _, words in read_annotated(path))
    replayed = tmp_path / "replay.yaml"
    text = (tmp_path / "overlay.yaml").read_text()
    engine = f"{{class_path: dirl.rollout.ReplayEngine, init_args: {{path: {path}}}}}"
    text = text.replace(str(saved), str(tmp_path / "again"))
    replayed.write_text(text.replace("{class_path: dirl.rollout.TorchEngine}", engine))
    second = fit(tmp_path / "second", *args, "--config", replayed, "--trainer.max_epochs=1")
    assert_same(weights(first), weights(second))
    assert (tmp_path / "again" / path.name).read_text() == path.read_text()


def test_rollout_and_evaluate_write_what_they_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rl(tmp_path / "rl.jsonl", 4)
    source = [
        "--source=dirl.models.NewModel",
        "--source.init_args.hidden_size=32",
        "--source.init_args.num_hidden_layers=1",
    ]
    out = tmp_path / "out.jsonl"
    main(
        [
            "rollout",
            *source,
            f"--data.path={data}",
            f"--output={out}",
            "--samples=3",
            "--decoding.max_response_tokens=8",
            "--texts=true",
        ]
    )
    trajectories = list(read_trajectories(out))
    asked = {row["question"]: row["ground_truth_answer"] for row in map(json.loads, data.read_text().splitlines())}
    for trajectory, words in read_annotated(out):
        assert asked[words.question] == words.ground_truth and words.block_size == 4
        ids = [*trajectory.prompt_ids, *trajectory.response_ids]
        assert words.response is not None and len(words.token_texts) == len(ids)
    assert {t.key for t in trajectories} == {(str(p), i) for p in range(4) for i in range(3)}
    decoding = json.dumps({"hot": {"temperature": 1.0, "max_response_tokens": 8}})
    rewards = '--rewards=[{"class_path": "dirl.rewards.ExactAnswer"}]'
    written = [f"--output={tmp_path / 'eval'}", "--texts=true"]
    main(["evaluate", *source, f"--data.path={data}", rewards, f"--decoding={decoding}", *written, "--samples=2"])
    assert all(words.question in asked for _, words in read_annotated(tmp_path / "eval" / "hot.jsonl"))
    report = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert report["hot"]["responses"] == 8
    assert "tokens_per_step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trainer.precision=bf16-true", "trainer.precision='bf16-true': use one of 32-true"),
        ("model.init_args.source.init_args.dtype=bfloat16", "dtype=float32"),
        ("model.init_args.reference.class_path=dirl.models.NewModel", "the reference model .* differs from the policy"),
    ],
)
def test_what_would_train_wrongly_in_silence_is_refused(tmp_path: Path, option: str, message: str) -> None:
    args = [*rl_args(tmp_path), "--objective.init_args.kl_coef=0.1", f"--{option}"]
    if "reference" in option:
        args.append("--model.init_args.reference.init_args.block_size=8")
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", *args)


def test_a_checkpoint_of_another_block_size_is_refused(tmp_path: Path) -> None:
    args = rl_args(tmp_path)
    root = fit(tmp_path / "run", *args, "--trainer.max_epochs=1")
    checkpoint = root / "logs" / "version_0" / "checkpoints" / "step=1.ckpt"
    with pytest.raises(ValueError, match=r"block_size=4, the model has block_size=8"):
        fit(tmp_path / "other", *args, "--model.init_args.source.init_args.block_size=8", f"--ckpt_path={checkpoint}")


def test_validate_without_validation_is_refused(tmp_path: Path) -> None:
    data, root = write_sft(tmp_path / "sft.jsonl"), f"--trainer.default_root_dir={tmp_path}"
    with pytest.raises(ValueError, match=r"data\.val=None: no conversations, and validate needs some"):
        main(["validate", "--config", str(CONFIGS / "debug" / "sft.yaml"), f"--data.init_args.train={data}", root])
    with pytest.raises(ValueError, match="use `dirl evaluate`"):
        main(["validate", *map(str, rl_args(tmp_path)), root])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"question": "1", "ground_truth_answer": "1"}\nnot json\n', r"rl\.jsonl:2"),
        ("", "no rows"),
        ('{"question": "1"}\n', "ground_truth_answer"),
        ('{"question": "' + "x" * 2000 + '", "ground_truth_answer": "1"}\n', "max_prompt_tokens"),
        ('{"question": "1", "ground_truth_answer": "1"}\n', "prompts_per_rollout=4 exceeds the 1 prompts"),
    ],
)
def test_bad_data_stops_the_run_before_any_training(tmp_path: Path, rows: str, message: str) -> None:
    args = rl_args(tmp_path)
    (tmp_path / "rl.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", *args)


def test_a_batch_that_does_not_fit_the_data_is_an_error(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl", 4)
    with pytest.raises(ValueError, match="global_batch_size=8 is larger than the 4 conversations"):
        fit(tmp_path / "run", "--config", CONFIGS / "debug" / "sft.yaml", f"--data.init_args.train={data}")
