"""An autoregressive folder made a block-diffusion model by `fit`: growing blocks, resumes, two processes, bad input."""

from pathlib import Path

import pytest
from tests.autoregressive import causal_folder
from tests.integration.identity import checkpoint
from tests.integration.one_run import run
from tests.integration.test_resume import SAVER, check_chain
from tests.integration.test_runs import CONFIGS, fit, rl_args
from tests.integration.test_strategies import assert_equal_runs
from tests.integration.toy import metrics, write_sft

from dirl.models import AutoregressiveModel, PretrainedModel
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest

SCHEDULE = "{sizes: [1, 2, 4], steps: [3, 2]}"
SIZES = [1.0] * 3 + [2.0] * 2 + [4.0] * 4


def adapting(folder: Path, schedule: str = SCHEDULE, steps: int = 9) -> list[object]:
    """Four steps an epoch."""
    model, data, saver = folder / "ar", folder / "sft.jsonl", folder / "saver.yaml"
    if not data.exists():
        causal_folder(model, alphabet=None)
        write_sft(data, 32)
        saver.write_text(SAVER)
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", saver, f"--data.init_args.train={data}"]
    args += ["--model.init_args.source=dirl.models.AutoregressiveModel", f"--model.init_args.source.path={model}"]
    args += [f"--data.init_args.block_schedule={schedule}", f"--data.init_args.val={data}"]
    return [*args, "--model.init_args.optimizer.schedule=cosine", f"--trainer.max_steps={steps}"]


def test_blocks_grow_over_epochs_and_resumes_and_the_export_has_the_last_size(tmp_path: Path) -> None:
    args = adapting(tmp_path)
    whole = fit(tmp_path / "whole", *args)
    assert metrics(whole, "train/block_size") == SIZES
    assert metrics(whole, "val/nelbo_per_token")[-1] < metrics(whole, "val/nelbo_per_token")[0]
    check_chain(whole, args, [2, 4, 6], 9)
    saved = PretrainedModel(str(whole / "model")).describe()
    assert (saved.config.model_type, saved.spec.block_size, saved.tokenizer.mask_token) == ("sdar", 4, "<|MASK|>")
    of_checkpoint = PretrainedModel(str(checkpoint(whole, 4)))
    assert of_checkpoint.describe().spec == saved.spec
    engine = TorchEngine()
    engine.setup(saved.config, saved.tokenizer, saved.spec, "cpu")
    engine.update_weights(saved.family.weights(PretrainedModel(str(whole / "model")).build(saved.config)), 0)
    (made,) = engine.generate([GenerationRequest("p", 0, (1, 2), seed=1)], DecodingParams(max_response_tokens=8))
    made.check(saved.spec)


def test_a_schedule_is_part_of_what_a_resumed_run_must_have(tmp_path: Path) -> None:
    fit(tmp_path / "run", *adapting(tmp_path))
    point = f"--ckpt_path={checkpoint(tmp_path / 'run', 2)}"
    with pytest.raises(
        ValueError, match=r"data\.block_schedule was {'sizes': \[1, 2, 4\], 'steps': \[3, 2\]}, is .*\[2"
    ):
        fit(tmp_path / "other", *adapting(tmp_path, "{sizes: [1, 2, 4], steps: [2, 2]}"), point)
    with pytest.raises(ValueError, match=r"data\.block_schedule was .*, is None"):
        fit(tmp_path / "none", *adapting(tmp_path, "null"), point)


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        ("{sizes: [1, 2], steps: 3}", 9, r"sizes=\[1, 2\] ends with 2, the model has block_size=4"),
        (SCHEDULE, 5, "the last block size, 4, begins after 5 optimizer steps, and the run has 5"),
    ],
)
def test_a_schedule_that_does_not_come_to_the_models_size_is_refused_before_weights_are_read(
    schedule: str, steps: int, message: str, tmp_path: Path
) -> None:
    args = adapting(tmp_path, schedule, steps)
    (tmp_path / "ar" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", *args)


def test_an_autoregressive_folder_in_rl_is_refused_with_the_way_that_there_is(tmp_path: Path) -> None:
    causal_folder(tmp_path / "ar", alphabet=None)
    source = "--model.init_args.source=dirl.models."
    path = f"--model.init_args.source.path={tmp_path / 'ar'}"
    with pytest.raises(ValueError, match=r"dirl\.models\.AutoregressiveModel as the source \(docs/adapting\.md\)"):
        fit(tmp_path / "run", *rl_args(tmp_path), f"{source}PretrainedModel", path)
    with pytest.raises(ValueError, match=r"it has never filled in a mask.* train it by SFT first"):
        fit(tmp_path / "run", *rl_args(tmp_path), f"{source}AutoregressiveModel", path)


def test_an_adapter_alone_is_refused_as_it_would_not_fit_its_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ["--model.init_args.lora={rank: 2}", "--export.form=adapter"]
    with pytest.raises(ValueError, match="has no row for the mask token, so an adapter would not fit it"):
        fit(tmp_path / "run", *adapting(tmp_path), *lora)


@pytest.mark.thorough
def test_two_processes_equal_one(tmp_path: Path) -> None:
    args = [*adapting(tmp_path), "--data.init_args.token_budget=180"]
    whole = run(tmp_path / "single", "single", *args)
    assert AutoregressiveModel(str(tmp_path / "ar")).describe().spec.vocab_size == 320
    for strategy in ("ddp", "fsdp"):
        found = run(tmp_path / strategy, strategy, *args)
        assert_equal_runs(whole, found)
        assert metrics(found, "train/block_size") == SIZES
    point = checkpoint(tmp_path / "ddp", 4)
    resumed = run(tmp_path / "resumed", "ddp", *args, f"--ckpt_path={point}")
    assert metrics(resumed, "train/loss") == metrics(tmp_path / "ddp", "train/loss")[3:]
