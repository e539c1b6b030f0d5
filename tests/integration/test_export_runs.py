"""What a run exports is the same folder, to the byte, however many processes trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.one_run import CONFIGS, run
from tests.integration.test_runs import fit
from tests.integration.toy import rl_overlay, write_rl, write_sft
from tests.unit.models.test_source import assert_equal_weights
from transformers import PreTrainedModel

from dirl.cli.main import main
from dirl.models import ModelDescription, NewModel, PretrainedModel, save_model


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


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.thorough), "fsdp"])
def test_two_processes_export_the_folder_of_one_and_so_does_the_command_from_their_checkpoint(
    strategy: str, args: list[object], single: Path, tmp_path: Path
) -> None:
    root = run(tmp_path / "run", strategy, *args)
    assert contents(root / "model") == contents(single / "model")
    checkpoint = checkpoint_of(root)
    assert checkpoint.is_dir() == (strategy == "fsdp")
    main(["export", f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'new'}"])
    assert contents(tmp_path / "new") == contents(single / "model")
    description, backbone = built(checkpoint)
    assert description.spec == PretrainedModel(str(single / "model")).describe().spec
    assert_equal_weights(backbone, built(single / "model")[1])


def checkpoint_of(root: Path) -> Path:
    return next(root.glob("logs/version_0/checkpoints/*.ckpt"))


def built(path: Path) -> tuple[ModelDescription, PreTrainedModel]:
    source = PretrainedModel(str(path))
    description = source.describe()
    return description, source.build(description.config)


def test_the_command_exports_a_checkpoint_and_asks_before_it_replaces(
    single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, output = checkpoint_of(single), tmp_path / "models" / "new"
    main(["export", f"--ckpt_path={checkpoint}", f"--output={output}"])
    assert capsys.readouterr().out == f"model of step 1 written to {output}\n"
    assert contents(output) == contents(single / "model")
    again = ["export", f"--ckpt_path={checkpoint}", f"--output={output}", "--dtype=float32", "--max_shard_size=50KB"]
    with pytest.raises(ValueError, match=r"holds a model already: name another folder, or add --overwrite=true"):
        main(again)
    assert contents(output) == contents(single / "model")
    main([*again, "--overwrite=true"])
    assert len(list(output.glob("model-*.safetensors"))) > 1
    assert {p.dtype for p in built(output)[1].parameters()} == {torch.float32}
    assert PretrainedModel(str(output), dtype="auto").describe().config.dtype == torch.float32


def test_what_is_no_whole_checkpoint_is_one_line(single: Path, source: Path, tmp_path: Path) -> None:
    whole = checkpoint_of(single)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole.read_bytes()[:-4000])
    values = torch.load(whole, weights_only=True)
    foreign, older, evil = (tmp_path / f"{name}.ckpt" for name in ("foreign", "older", "evil"))
    torch.save({"state_dict": values["state_dict"]}, foreign)
    escaping = {"../../escaped.txt": ""} | values["dirl"]["model_files"]
    torch.save(values | {"dirl": values["dirl"] | {"model_files": escaping}}, evil)
    del values["dirl"]["model_files"]
    torch.save(values, older)
    cases = {
        cut: "cut.ckpt is damaged",
        foreign: "foreign.ckpt is no checkpoint of dirl",
        evil: r"holds a file '\.\./\.\./escaped.txt', which is no name in a folder",
        older: "does not hold its model's config and tokenizer",
        tmp_path / "none.ckpt": "there is no such file or folder",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            main(["export", f"--ckpt_path={path}", f"--output={tmp_path / 'model'}"])
        with pytest.raises(ValueError, match=message):
            PretrainedModel(str(path)).describe()
    with pytest.raises(ValueError, match="is a Hugging Face model and no checkpoint of a run"):
        main(["export", f"--ckpt_path={source}", f"--output={tmp_path / 'model'}"])
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_serves_as_a_model(single: Path, tmp_path: Path) -> None:
    """What is generated with it is what its export generates."""
    data = write_rl(tmp_path / "rl.jsonl", 3)
    made = []
    for path in (checkpoint_of(single), single / "model"):
        output = tmp_path / f"{path.name}.jsonl"
        source = ["--source=dirl.models.PretrainedModel", f"--source.init_args.path={path}"]
        source += ["--source.init_args.dtype=auto", "--decoding.max_response_tokens=8"]
        main(["rollout", *source, f"--data.path={data}", f"--output={output}"])
        made.append(output.read_text())
    assert made[0] == made[1] != ""


def test_rl_trains_from_a_checkpoint_of_sft_and_its_own_checkpoint_is_exported(single: Path, tmp_path: Path) -> None:
    path = checkpoint_of(single)
    overlay = rl_overlay(tmp_path / "overlay.yaml")
    model = "  init_args:\n    source:\n      class_path: dirl.models.PretrainedModel\n"
    overlay.write_text(overlay.read_text() + f"model:\n{model}      init_args: {{path: '{path}'}}\n")
    options = ["--config", CONFIGS / "debug" / "rl.yaml", "--config", overlay, "--trainer.max_epochs=1"]
    root = fit(tmp_path / "rl", *options, f"--data.init_args.train={write_rl(tmp_path / 'rl.jsonl')}")
    last = root / "logs" / "version_0" / "checkpoints" / "step=2.ckpt"
    main(["export", f"--ckpt_path={last}", f"--output={tmp_path / 'new'}"])
    assert contents(tmp_path / "new") == contents(root / "model")
    assert (root / "model" / "model.safetensors").read_bytes() != (single / "model" / "model.safetensors").read_bytes()


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
    overlay.write_text(f"export: {{folder: {folder}}}\n")
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, *args, "--config", overlay)
    assert not list(tmp_path.glob("logs/*/metrics.csv"))
