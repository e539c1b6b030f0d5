"""Every YAML under configs/ parses and instantiates, alone or on top of the recipe it belongs to."""

from pathlib import Path

import pytest

from dirl.cli.main import DirlCLI, parse_command
from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
from dirl.modules import DiPOModule, SFTModule
from dirl.rollout import RolloutEngine

ROOT = Path(__file__).parents[2] / "configs"
HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.precision=32-true"]
WHOLE = sorted(
    [ROOT / "sft.yaml", ROOT / "rl.yaml", *(p for d in ("recipe", "debug", "demo") for p in (ROOT / d).glob("*.yaml"))]
)
ON_TOP = {"model": ("sft", "rl"), "data": (), "engine": ("rl",), "strategy": ("sft", "rl")}
PARTS = [
    (part, base) for kind, bases in ON_TOP.items() for part in sorted((ROOT / kind).glob("*.yaml")) for base in bases
]
PARTS += [(ROOT / "data" / "local_sft.yaml", "sft"), (ROOT / "data" / "local_rl.yaml", "rl")]


def build(tmp_path: Path, *configs: Path) -> DirlCLI:
    args = [x for config in configs for x in ("--config", str(config))]
    return DirlCLI([*args, *HERE, f"--trainer.default_root_dir={tmp_path}"], run=False)


def name(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


@pytest.mark.parametrize("config", WHOLE, ids=name)
def test_a_recipe_instantiates_module_data_and_trainer(config: Path, tmp_path: Path) -> None:
    cli = build(tmp_path, config)
    pair = (type(cli.model), type(cli.datamodule))
    assert pair in {(SFTModule, SFTDataModule), (DiPOModule, RLDataModule)}
    rollouts = [c for c in cli.trainer.callbacks if type(c).__name__ == "Rollout"]
    assert len(rollouts) == (pair[0] is DiPOModule)


@pytest.mark.parametrize(("part", "base"), PARTS, ids=name)
def test_a_part_goes_on_top_of_a_recipe(part: Path, base: str, tmp_path: Path) -> None:
    plain = build(tmp_path, ROOT / f"{base}.yaml")
    merged = build(tmp_path, ROOT / f"{base}.yaml", part)
    assert type(merged.model) is type(plain.model)
    changed = part.read_text(encoding="utf-8")
    if part.parent.name == "strategy" and "class_path" in changed:
        assert type(merged.trainer.strategy).__name__ in changed
    if part.parent.name == "model":
        assert type(merged.model.source).__name__ in changed
    if part.parent.name == "engine":
        before, after = (
            next(c for c in cli.trainer.callbacks if type(c).__name__ == "Rollout") for cli in (plain, merged)
        )
        assert isinstance(after.engine, RolloutEngine)
        assert type(after.engine).__name__ in changed
        assert after.dynamic_sampling == before.dynamic_sampling is True, "only the engine changes"
        assert merged.model.loss_config == plain.model.loss_config  # with an importance_cap, as stale samples need
        assert [type(r) for r in after.scorer.rewards] == [type(r) for r in before.scorer.rewards]


def test_the_evaluation_config_instantiates() -> None:
    options = parse_command("evaluate", ["--config", str(ROOT / "eval.yaml")])
    assert set(options["decoding"]) == {"dynamic", "static", "greedy"}
    assert options["rewards"][0].name == "accuracy"
    assert type(options["engine"]).__name__ == "LMDeployEngine"


def test_the_evaluation_config_takes_another_engine() -> None:
    options = parse_command("evaluate", ["--config", str(ROOT / "eval.yaml"), "--engine", "dirl.rollout.TorchEngine"])
    assert (type(options["engine"]).__name__, options["engine"].max_batch_size) == ("TorchEngine", 256)


def test_the_serving_config_instantiates() -> None:
    options = parse_command("serve", ["--config", str(ROOT / "serve.yaml")])
    assert type(options["engine"]).__name__ == "LMDeployEngine"


def test_no_config_is_left_untested() -> None:
    tested = {*WHOLE, *(part for part, _ in PARTS), ROOT / "eval.yaml", ROOT / "serve.yaml"}
    assert set(ROOT.rglob("*.yaml")) == tested


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.init_args.optimizer.learning_rate=1", "learning_rate"),
        ("--model.init_args.loss.kl=1", "kl"),  # nor is an abbreviation a key
        ("--model.init_args.decoding.temp=1", "temp"),
        ("--model.init_args.loss.normalization=batch", "batch"),
        ("--model.init_args.decoding.strategy=greedy", "greedy"),
        ("--data.init_args.group=4", "group"),
        ("--trainer.stratgy=ddp", "stratgy"),
        ("--data.init_args.group_size=1", "group_size=1"),
        ("--model.init_args.decoding.threshold=1.5", "threshold=1.5"),
        ("--model.init_args.source.init_args.block_size=0", "block_size=0"),
        ("--model.init_args.decoding.temperature=0", "temperature=0"),
    ],
)
def test_an_unknown_key_or_value_is_an_error_that_names_it(
    option: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as error:
        DirlCLI(
            ["--config", str(ROOT / "debug" / "rl.yaml"), option, f"--trainer.default_root_dir={tmp_path}"], run=False
        )
    assert named in capsys.readouterr().err + str(error.value)


def test_an_unknown_reward_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer:\n  callbacks:\n    - class_path: dirl.callbacks.Rollout\n      init_args:\n"
        "        engine: {class_path: dirl.rollout.TorchEngine}\n"
        "        rewards: [{class_path: dirl.rewards.Acuracy}]\n"
    )
    with pytest.raises((SystemExit, ValueError)) as error:
        build(tmp_path, ROOT / "debug" / "rl.yaml", overlay)
    assert "Acuracy" in capsys.readouterr().err + str(error.value)
