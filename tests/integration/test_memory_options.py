"""What saves memory changes no result: sharded from files, recomputed, with state and reference on the host."""

from pathlib import Path

import pytest
from tests.integration.one_run import CONFIGS, run
from tests.integration.test_strategies import assert_equal_runs
from tests.integration.toy import metrics, rl_overlay, write_rl

from dirl.models import NewModel, save_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rl_args(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """RL from a model folder, with a KL term and old log-probs."""
    folder = tmp_path_factory.mktemp("rl")
    source = NewModel(block_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=8)
    description = source.describe()
    save_model(folder / "model", source.build(description.config), description.tokenizer)
    overlay, data = rl_overlay(folder / "overlay.yaml"), write_rl(folder / "rl.jsonl")
    plain = folder / "source.yaml"
    plain.write_text(
        "model:\n  init_args:\n    source:\n      class_path: dirl.models.PretrainedModel\n"
        f"      init_args: {{path: {folder / 'model'}}}\n"
    )
    configs = [x for path in (CONFIGS / "debug" / "rl.yaml", overlay, plain) for x in ("--config", path)]
    options = ["--data.init_args.passes=2", "--data.init_args.token_budget=200", "--objective.init_args.kl_coef=0.1"]
    return [*configs, f"--data.init_args.train={data}", *options]


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory, rl_args: list[object]) -> Path:
    return run(tmp_path_factory.mktemp("single") / "rl", "single", *rl_args)


@pytest.mark.parametrize(
    ("strategy", "checkpointing"), [("fsdp", "selective"), pytest.param("ddp", "full", marks=pytest.mark.thorough)]
)
def test_two_processes_with_all_that_saves_memory_equal_a_plain_run(
    strategy: str, checkpointing: str, tmp_path: Path, rl_args: list[object], plain_run: Path
) -> None:
    options = [f"--model.init_args.activation_checkpointing={checkpointing}", "--model.init_args.head_chunk=7"]
    options += [f"--model.init_args.{name}=true" for name in ("offload_optimizer", "reference_on_host")]
    saving = run(tmp_path / "run", strategy, *rl_args, *options)
    assert_equal_runs(plain_run, saving)
    assert max(metrics(saving, "train/reference_kl")) > 0


def test_the_fill_rate_is_packed_tokens_over_the_room_of_all_micro_batches(plain_run: Path) -> None:
    rates, tokens = metrics(plain_run, "data/fill_rate"), metrics(plain_run, "train/packed_tokens")
    assert len(rates) == len(tokens) > 0
    for rate, packed in zip(rates, tokens, strict=True):
        rows = packed / rate / 200
        assert 0.5 < rate <= 1 and rows == pytest.approx(round(rows), rel=1e-5)
