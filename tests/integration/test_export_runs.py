"""What a run exports is the same folder, to the byte, however many processes trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.test_runs import fit
from tests.integration.test_strategies import CONFIGS, run
from tests.integration.toy import write_sft

from dirl.models import NewModel, PretrainedModel, save_model


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it may have been published: in bf16, with a generation config that is its own."""
    folder = tmp_path_factory.mktemp("source") / "model"
    new = NewModel(
        block_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8, dtype="bfloat16"
    )
    description = new.describe()
    save_model(folder, new.build(description.config), description.tokenizer)
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    return folder


@pytest.fixture(scope="module")
def args(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """One step so small that no weight changes, for sums over ranks are rounded in another order."""
    data = write_sft(tmp_path_factory.mktemp("data") / "sft.jsonl")
    model = tmp_path_factory.mktemp("config") / "model.yaml"
    model.write_text(
        "trainer: {max_steps: 1}\n"
        "model:\n  init_args:\n    optimizer: {lr: 1.0e-60}\n    source:\n"
        f"      class_path: dirl.models.PretrainedModel\n      init_args: {{path: {source}}}\n"
    )
    return ["--config", CONFIGS / "debug" / "sft.yaml", "--config", model, f"--data.init_args.train={data}"]


@pytest.fixture(scope="module")
def single(args: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("single"), *args)


def test_a_bf16_model_is_exported_in_bf16_and_with_its_generation_config(single: Path, source: Path) -> None:
    weights = load_file(single / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    expected = load_file(source / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
    assert '"temperature": 0.6' in (single / "model" / "generation_config.json").read_text()
    assert PretrainedModel(str(single / "model")).describe().spec == PretrainedModel(str(source)).describe().spec


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_export_the_folder_of_one(
    strategy: str, args: list[object], single: Path, tmp_path: Path
) -> None:
    root = run(tmp_path / "run", strategy, *args)
    assert contents(root / "model") == contents(single / "model")


def test_fast_dev_run_exports_nothing_and_looks_at_no_folder(args: list[object], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    fit(tmp_path, *args, "--trainer.fast_dev_run=true")
    assert list(contents(tmp_path / "model")) == ["notes.txt"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [("model", "holds 'notes.txt', which is no part of a model"), (".", "is the folder of the run itself")],
)
def test_a_folder_that_cannot_be_written_stops_the_run_before_it_trains(
    folder: str, message: str, args: list[object], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    overlay = tmp_path / "export.yaml"
    overlay.write_text(
        f"trainer:\n  callbacks:\n    - class_path: dirl.callbacks.Export\n      init_args: {{folder: {folder}}}\n"
    )
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, *args, "--config", overlay)
    assert not list(tmp_path.glob("logs/*/metrics.csv"))
