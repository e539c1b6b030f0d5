"""Every YAML under configs/ parses and instantiates, alone or on top of the recipe it belongs to."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import NoneType

import pytest
from dirl.callbacks import Checkpoint, Evaluate, Export, Rollout
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import OmegaConf

from dirl.cli.fit import DirlCLI
from dirl.cli.main import parse_command
from dirl.cli.signatures import parameters
from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
from dirl.models.lora import LoRAConfig
from dirl.modules import RLModule, SFTModule
from dirl.objectives import DiPO
from dirl.rewards.sandbox import why_not
from dirl.rollout import RolloutEngine
from dirl.tasks import Arithmetic, Files

ROOT = Path(__file__).parents[2] / "configs"
HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.precision=32-true"]
FOLDERS = ("recipe", "laptop", "debug", "demo")
WHOLE = sorted([ROOT / "sft.yaml", ROOT / "rl.yaml", *(p for d in FOLDERS for p in (ROOT / d).glob("*.yaml"))])
RECIPES = {config: "rl" if "\nengine:" in config.read_text() else "sft" for config in WHOLE}
ON_TOP = {
    "model": ("sft", "rl"),
    "adapt": ("sft",),
    "engine": ("rl",),
    "objective": ("rl",),
    "lora": ("sft", "rl"),
    "strategy": ("sft", "rl"),
    "task": ("sft", "rl"),
}
OWN_OBJECTIVE = ("tracerl_4b_rl", "tracerl_8b_rl", "lightningrl_8b_b32_rl")
"""Recipes of an objective, which one takes for its sake; all others have DiPO."""
PARTS = [
    (part, recipe)
    for kind, stages in ON_TOP.items()
    for part in sorted((ROOT / kind).glob("*.yaml"))
    for recipe, stage in RECIPES.items()
    if stage in stages and not (kind == "objective" and recipe.stem in OWN_OBJECTIVE)
]
CHANGED = {
    "replay": {"importance_cap": 2.0},  # its samples are of other weights
    "dipo_trajectory": {"likelihood": "trajectory"},
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "normalization": "sequence"},
    "cispo": {"ratio": "cispo", "clip_low": 1.0, "clip_high": 0.28},
}
"""What a part changes of the objective."""
OF_DIPO = ("dipo", "dipo_trajectory", "gspo", "cispo")
"""The objectives that all recipes have, by default or by name."""
PARTS += [(ROOT / "data" / f"local_{stage}.yaml", recipe) for recipe, stage in RECIPES.items()]
EVALUATIONS = sorted((ROOT / "evaluation").glob("*.yaml"))
"""Settings that papers evaluated with: configs of their own, for any task."""
SUITES = ("GSM8K", "MATH500", "AIME24", "AIME25", "OlympiadBench", "HumanEval", "MBPP")
RUNS_CODE = ("humaneval", "mbpp")
OWN_TASK = sorted((ROOT / "demo").glob("*.yaml"))
"""Recipes with a task; others have files."""


def build(tmp_path: Path, *configs: Path, options: Sequence[str] = ()) -> DirlCLI:
    args = [x for config in configs for x in ("--config", str(config))]
    return DirlCLI([*args, *HERE, f"--trainer.default_root_dir={tmp_path}", *options], run=False)


def name(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


@pytest.mark.parametrize("config", WHOLE, ids=name)
def test_a_recipe_instantiates_module_data_and_trainer(config: Path, tmp_path: Path) -> None:
    cli = build(tmp_path, config)
    pair = (type(cli.model), type(cli.datamodule))
    assert pair in {(SFTModule, SFTDataModule), (RLModule, RLDataModule)}
    rollouts = [c for c in cli.trainer.callbacks if type(c).__name__ == "Rollout"]
    assert len(rollouts) == (pair[0] is RLModule)


@cache
def plain(recipe: Path) -> DirlCLI:
    return build(Path("outputs"), recipe)


def options_of(callback: Callback) -> dict[str, object]:
    """What a callback was made with, its engine apart; of tasks their names."""
    plain_types = (int, float, str, bool, type(None), dict, list)
    found = {k: v for k, v in vars(callback).items() if isinstance(v, plain_types) and "dir" not in k}
    return found | {"tasks": list(found["tasks"])} if found.get("tasks") else found


def correct_by(callback: Callback) -> dict[str, object]:
    """What says what is correct follows from the rewards."""
    return {"correct": callback.scorer.correctness.name} if isinstance(callback, Rollout) else {}


def is_alike(part: Path, recipe: Path) -> bool:
    """Models differ in the path of their source: two go on top of every recipe, all on the two plain ones. Three
    recipes are another one's but for their source, schedule or devices, and three strategies are options of `fsdp`.
    Tasks are names of classes: two go on top of every recipe, all on the plain ones and on those that have a task; so
    do objectives other than the usual one."""
    if recipe.stem in ("adapt", "sdar_8b_from_qwen3_sft"):
        return True
    if recipe.stem == "dirl_8b_rl_one_node" or part.stem in ("hybrid", "fsdp_tp", "fsdp_offload"):
        return recipe.parent != ROOT
    if part.parent.name in ("task", "objective") and part.stem not in ("arithmetic", "gsm8k", "dipo", "gspo"):
        return recipe.parent != ROOT and recipe not in OWN_TASK
    source = part.parent.name == "adapt" or (part.parent.name == "model" and part.stem not in ("new_tiny", "sdar_8b"))
    return source and recipe.parent != ROOT


@pytest.mark.parametrize(
    ("part", "recipe"),
    [pytest.param(*pair, marks=[pytest.mark.thorough] if is_alike(*pair) else []) for pair in PARTS],
    ids=name,
)
def test_a_part_on_top_of_a_recipe_changes_what_it_names_and_nothing_else(
    part: Path, recipe: Path, tmp_path: Path
) -> None:
    if part.stem in RUNS_CODE and why_not() is not None:
        pytest.skip(f"no sandbox here: {why_not()}")
    files_on_task = part.parent.name == "data" and recipe in OWN_TASK and RECIPES[recipe] == "rl"
    options = ["--rollout.rewards=[dirl.rewards.ExactAnswer]"] if files_on_task else []  # files name none, as tasks do
    options += ["--trainer.devices=2"] if part.stem == "fsdp_tp" else []
    after = build(tmp_path, recipe, part, options=options)
    before, text = plain(recipe), part.read_text(encoding="utf-8")
    assert (type(after.model), type(after.datamodule)) == (type(before.model), type(before.datamodule))
    if part.parent.name == "strategy" and "class_path" in text:
        assert type(after.trainer.strategy).__name__ in text
    if part.parent.name in ("model", "adapt"):
        assert type(after.model.source).__name__ in text
    if part.parent.name == "lora":
        named = ["q_proj", "k_proj", "v_proj", "o_proj"] if part.stem == "attention" else None
        assert after.model.lora == LoRAConfig(rank=32, alpha=64, targets=named)
    assert after.model.optimizer_config == before.model.optimizer_config
    assert [type(c) for c in after.trainer.callbacks] == [type(c) for c in before.trainer.callbacks]
    for one, other in zip(before.trainer.callbacks, after.trainer.callbacks, strict=True):
        assert options_of(one) | correct_by(other) == options_of(other)
        if isinstance(one, Rollout):
            assert isinstance(other.engine, RolloutEngine)
            assert type(other.engine).__name__ in (text if part.parent.name == "engine" else recipe.read_text())
            rewards = after.datamodule.task.rewards() if part.parent.name == "task" else one.scorer.rewards
            assert [type(r) for r in other.scorer.rewards] == [type(r) for r in rewards]
    learned = after.datamodule.task
    if part.parent.name == "task":
        assert f"dirl.tasks.{type(learned).__name__}\n" in text
    elif part.parent.name == "data" or recipe not in OWN_TASK:
        assert isinstance(learned, Files if RECIPES[recipe] == "rl" else NoneType)
    else:
        assert isinstance(learned, Arithmetic)
    if isinstance(after.model, RLModule):
        if part.parent.name == "objective" and part.stem not in OF_DIPO:
            assert type(after.model.objective).__name__ in text
        else:
            assert vars(after.model.objective) == vars(before.model.objective) | CHANGED.get(part.stem, {})
        if part.stem == "leftmost":
            leftmost = {"strategy": "sequential", "denoising_steps": None}
            assert after.model.decoding == replace(before.model.decoding, **leftmost)
        else:
            assert after.model.decoding == before.model.decoding


@pytest.mark.parametrize(
    ("options", "callback", "attribute", "value"),
    [
        (["--rollout.dynamic_sampling=true"], Rollout, "dynamic_sampling", True),
        (["--evaluate.samples=7"], Evaluate, "samples", 7),
        (["--export.folder=elsewhere"], Export, "folder", "elsewhere"),
        (["--checkpoint.save_top_k=-1", "--trainer.enable_checkpointing=true"], Checkpoint, "save_top_k", -1),
    ],
)
def test_one_option_of_a_callback_is_set_by_its_name(
    options: list[str], callback: type, attribute: str, value: object, tmp_path: Path
) -> None:
    args = ["--config", str(ROOT / "demo" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}", *options]
    (found,) = [c for c in DirlCLI(args, run=False).trainer.callbacks if isinstance(c, callback)]
    assert getattr(found, attribute) == value


def test_without_checkpointing_the_key_makes_none(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    callbacks = DirlCLI([*args, "--trainer.enable_checkpointing=false"], run=False).trainer.callbacks
    assert not [c for c in callbacks if isinstance(c, Checkpoint)]


def test_a_moved_option_on_the_command_line_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(ValueError, match=r"has another place now: write objective.init_args.kl_coef"):
        DirlCLI([*args, "--model.init_args.loss.kl_coef=0.1"], run=False)


def test_one_option_of_the_default_objective_is_set_by_its_name(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    for option in ("--objective.kl_coef=0.25", "--objective.init_args.kl_coef=0.25"):
        assert DirlCLI([*args, option], run=False).model.objective.kl_coef == 0.25


def test_sft_has_no_objective_and_refuses_one(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "sft.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    assert DirlCLI(args, run=False).config["objective"] is None
    for own in ("--objective=tests.integration.toy.Reinforce", "--objective.kl_coef=0.1"):
        with pytest.raises(ValueError, match="objective: in the config, and SFTModule makes no rollouts"):
            DirlCLI([*args, own], run=False)


def test_a_task_takes_the_place_of_files_on_the_command_line(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    own = ["--task=dirl.tasks.Countdown", "--task.seed=5", "--data.train=null"]
    cli = DirlCLI([*args, *own], run=False)
    assert (type(cli.datamodule.task).__name__, cli.datamodule.task.seed) == ("Countdown", 5)
    (rollout,) = [c for c in cli.trainer.callbacks if isinstance(c, Rollout)]
    assert [r.name for r in rollout.scorer.rewards] == ["exact_answer", "length"], "the config's own are kept"


def test_a_task_takes_the_place_of_files_in_sft_too(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "sft.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    task = DirlCLI([*args, "--task=dirl.tasks.Countdown", "--data.train=null"], run=False).datamodule.task
    assert type(task).__name__ == "Countdown"
    with pytest.raises(ValueError, match=r"data.train='data/sft.jsonl': given, and so is task=Countdown, .*train=null"):
        DirlCLI([*args, "--task=dirl.tasks.Countdown"], run=False)
    with pytest.raises(ValueError, match=r"data.train and task: neither is given"):
        DirlCLI([*args, "--data.train=null"], run=False)


def test_a_task_is_refused_where_nothing_takes_it(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "sft.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(ValueError, match="task: in the config, and data is none of SFTDataModule, RLDataModule"):
        DirlCLI([*args, "--task=dirl.tasks.Countdown", "--data=tests.integration.engines.NoTask"], run=False)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_what_is_said_of_files_is_not_used_by_a_task_and_that_is_said(stage: str, tmp_path: Path) -> None:
    option = {"sft": "column", "rl": "system_prompt"}[stage]
    args = ["--config", str(ROOT / "debug" / f"{stage}.yaml"), "--task=dirl.tasks.Sudoku", "--data.train=null"]
    with pytest.warns(UserWarning, match=f"data.{option}='x': not used, as task=Sudoku has no files"):
        cli = DirlCLI([*args, f"--data.{option}=x", f"--trainer.default_root_dir={tmp_path}"], run=False)
    assert type(cli.datamodule.task).__name__ == "Sudoku"


def test_a_key_set_to_null_is_off(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "demo" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    callbacks = DirlCLI([*args, "--export=null", "--evaluate=null"], run=False).trainer.callbacks
    assert not [c for c in callbacks if isinstance(c, Export | Evaluate)]


def test_the_callbacks_of_a_user_stand_between_those_of_the_keys(tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text("trainer:\n  callbacks:\n    - class_path: tests.integration.engines.TellOfSteps\n")
    cli = build(tmp_path, ROOT / "demo" / "rl.yaml", overlay)
    names = [type(c).__name__ for c in cli.trainer.callbacks]
    assert names.index("Rollout") < names.index("Evaluate") < names.index("TellOfSteps") < names.index("Export")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trainer:\n  callbacks:\n    - class_path: dirl.callbacks.Rollout\n      init_args: {rewards: []}\n",
            r"trainer.callbacks\[0\]: dirl.callbacks.Rollout has a key of its own now: .*`rollout`.*`engine`",
        ),
        ("trainer:\n  callbacks+:\n    - class_path: dirl.callbacks.Export\n", "write its init_args under `export`"),
        ("rollout: {engine: {class_path: dirl.rollout.TorchEngine}}\n", "rollout.engine: .* write it under `engine`"),
        (
            "trainer:\n  callbacks: []\n  callbacks+:\n    - class_path: tests.integration.observed.Observed\n",
            r"own.yaml: has both trainer.callbacks and trainer.callbacks\+, of which one would be lost",
        ),
        (
            "rollout: {advantage: zscore}\n",
            r"own.yaml: rollout.advantage: 'zscore' has another name now: write {class_path: dirl.advantages.ZScore}",
        ),
        (
            "engine: {class_path: dirl.rollout.ServerEngine, init_args: {urls: ['http://a'], transport: gloo}}\n",
            "own.yaml: engine.init_args.transport: 'gloo' has another name now: write http",
        ),
        (
            "model: {init_args: {loss: {kl_coef: 0.1}}}\n",
            "own.yaml: model.init_args.loss: has another place now: write objective.init_args",
        ),
        ("model: {class_path: dirl.modules.DiPOModule}\n", "has another name now: write dirl.modules.RLModule"),
        (
            "model: {init_args: {objective: {class_path: dirl.objectives.DiPO}}}\n",
            "model.init_args.objective: the objective has a key of its own",
        ),
        (
            "data: {init_args: {task: {class_path: dirl.tasks.Sudoku}}}\n",
            "data.init_args.task: the task has a key of its own: write it under `task`",
        ),
        (
            "task: {class_path: dirl.tasks.Sudoku}\ndata: {init_args: {val: b.jsonl}}\n",
            r"data.train='data/rl.jsonl', data.val='b.jsonl': given, and so is task=Sudoku, .*; write "
            "--data.train=null --data.val=null, or set the task to null",
        ),
        ("data: {init_args: {train: null}}\n", "data.train and task: neither is given"),
        ("rollout: {rewards: null}\n", r"rollout.rewards: none are given, and the task \(Files\) names none"),
        ("engine: null\n", "engine: not in the config, and RLModule learns from rollouts"),
        ("rollout: null\nengine: null\n", "engine, rollout: not in the config"),
    ],
)
def test_what_is_written_at_another_place_is_an_error_that_names_the_place(
    text: str, message: str, tmp_path: Path
) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text(text)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, ROOT / "debug" / "rl.yaml", overlay)


def test_a_renamed_value_on_the_command_line_is_an_error_that_names_the_new_one(tmp_path: Path) -> None:
    args = ["--config", str(ROOT / "debug" / "rl.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    for option in (["--rollout.advantage=mean"], ["--rollout.advantage", "mean"]):
        with pytest.raises(ValueError, match=r"--rollout.advantage: 'mean' has another name now: .*advantages.Mean"):
            DirlCLI([*args, *option], run=False)


@pytest.mark.parametrize("option", ["--checkpoint.every_n_train_steps=2", "--checkpoint={every_n_epochs: 2}"])
def test_an_option_of_checkpoints_that_are_not_written_is_an_error(option: str, tmp_path: Path) -> None:
    recipe = ROOT / "demo" / "rl.yaml"
    with pytest.raises(ValueError, match=r"--checkpoint.*: trainer.enable_checkpointing=false, .*_checkpointing true"):
        build(tmp_path, recipe, options=[option])
    cli = build(tmp_path, recipe, options=[option, "--trainer.enable_checkpointing=true"])
    assert any(isinstance(c, Checkpoint) for c in cli.trainer.callbacks)
    build(tmp_path, recipe, options=["--checkpoint=null"])
    overlay = tmp_path / "own.yaml"
    overlay.write_text("checkpoint: {every_n_epochs: 2}\n")
    with pytest.warns(UserWarning, match="checkpoint: in the config, and trainer.enable_checkpointing=false"):
        build(tmp_path, recipe, overlay)


def test_a_checkpoint_of_lightnings_callback_is_one_of_ours() -> None:
    """A run goes on whichever of the two it was saved with."""
    assert Checkpoint(every_n_epochs=2).state_key == ModelCheckpoint(every_n_epochs=2).state_key


def test_keys_of_rl_are_refused_where_nothing_uses_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine: in the config, and SFTModule makes no rollouts; remove it"):
        build(tmp_path, ROOT / "debug" / "sft.yaml", ROOT / "engine" / "torch.yaml")


@pytest.mark.parametrize("command", ["evaluate", "serve"])
@pytest.mark.parametrize("part", ["torch", "lmdeploy", "lmdeploy_server"])
def test_an_engine_goes_on_top_of_commands_that_have_one(command: str, part: str) -> None:
    config, overlay = ROOT / {"evaluate": "eval.yaml", "serve": "serve.yaml"}[command], ROOT / "engine" / f"{part}.yaml"
    options = parse_command(command, ["--config", str(config), "--config", str(overlay)])
    assert type(options["engine"]).__name__ in overlay.read_text()


def test_the_evaluation_config_instantiates() -> None:
    options = parse_command("evaluate", ["--config", str(ROOT / "eval.yaml")])
    assert set(options["decoding"]) == {"dynamic", "static", "greedy"}
    assert options["rewards"][0].name == "accuracy"
    assert type(options["engine"]).__name__ == "LMDeployEngine"


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("config", EVALUATIONS, ids=name)
def test_published_settings_go_with_every_suite(config: Path, suite: str) -> None:
    options = parse_command("evaluate", ["--config", str(config), "--task", f"dirl.tasks.{suite}"])
    assert type(options["task"]).__name__ == suite
    assert (options["rewards"], options["data"].path) == (None, None)
    assert all(one.strategy.removeprefix("low_confidence_") == name for name, one in options["decoding"].items())


@pytest.mark.parametrize(
    ("stem", "samples", "settings"),
    [
        ("dirl", 3, {"temperature": 1.0, "top_k": 50, "threshold": 0.9, "max_response_tokens": 8192}),
        ("sdar", 1, {"temperature": 0.0, "top_k": 0, "threshold": 0.95, "max_response_tokens": 4096}),
        ("avg64", 64, {"temperature": 1.0, "top_k": 50, "threshold": 0.9, "max_response_tokens": 8192}),
    ],
)
def test_published_settings_are_those_that_were_published(stem: str, samples: int, settings: dict[str, object]) -> None:
    config = ROOT / "evaluation" / f"{stem}.yaml"
    options = parse_command("evaluate", ["--config", str(config), "--task", "dirl.tasks.GSM8K"])
    assert options["samples"] == samples
    assert {name: getattr(options["decoding"]["dynamic"], name) for name in settings} == settings


def test_the_evaluation_config_takes_another_engine() -> None:
    options = parse_command("evaluate", ["--config", str(ROOT / "eval.yaml"), "--engine", "dirl.rollout.TorchEngine"])
    assert (type(options["engine"]).__name__, options["engine"].max_batch_size) == ("TorchEngine", 64)


def test_the_serving_config_instantiates() -> None:
    options = parse_command("serve", ["--config", str(ROOT / "serve.yaml")])
    assert type(options["engine"]).__name__ == "LMDeployEngine"


def test_no_config_is_left_untested() -> None:
    tested = {*WHOLE, *EVALUATIONS, *(part for part, _ in PARTS), ROOT / "eval.yaml", ROOT / "serve.yaml"}
    assert set(ROOT.rglob("*.yaml")) == tested


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.init_args.optimizer.learning_rate=1", "learning_rate"),
        ("--objective.init_args.kl=1", "kl"),  # nor is an abbreviation a key
        ("--model.init_args.decoding.temp=1", "temp"),
        ("--objective.init_args.normalization=batch", "batch"),
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
    overlay.write_text("rollout:\n  rewards: [{class_path: dirl.rewards.Acuracy}]\n")
    with pytest.raises((SystemExit, ValueError)) as error:
        build(tmp_path, ROOT / "debug" / "rl.yaml", overlay)
    assert "Acuracy" in capsys.readouterr().err + str(error.value)


def test_an_objective_put_on_another_keeps_nothing_that_an_overlay_gave_the_other() -> None:
    """An option of the same name goes on where the class changes: each overlay states all that any of them sets."""
    objectives = {path.stem: OmegaConf.load(path).objective for path in sorted((ROOT / "objective").glob("*.yaml"))}
    every = {name for objective in objectives.values() for name in objective.init_args}
    for stem, objective in objectives.items():
        taken = parameters(objective.class_path)
        assert taken is not None and every & taken <= set(objective.init_args), stem


def test_dipo_on_a_recipe_of_another_objective_is_dipo(tmp_path: Path) -> None:
    made = build(tmp_path, ROOT / "recipe" / "tracerl_4b_rl.yaml", ROOT / "objective" / "dipo.yaml")
    assert isinstance(made.model, RLModule) and isinstance(made.model.objective, DiPO)
    assert vars(made.model.objective) == vars(DiPO())
