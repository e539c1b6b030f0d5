"""Top-level keys of `fit` for what a run has one of: its task, its engine, and each of the project's callbacks by name.

A list of callbacks can only be replaced or appended to; a key can be set, changed in one option, or set to null by any
further config and on the command line: `--config configs/engine/torch.yaml`, `--rollout.dynamic_sampling true`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from dirl.callbacks import Checkpoint, Evaluate, Export, Rollout
from dirl.data.rl import RLDataModule
from dirl.modules import BlockDiffusionModule
from dirl.objectives import Objective
from dirl.rollout import RolloutEngine
from dirl.tasks import Task

CALLBACKS: dict[str, tuple[type[L.Callback], str]] = {
    "rollout": (Rollout, "RL: rewards, filters and how the groups of each epoch are made."),
    "evaluate": (Evaluate, "RL: responses to the validation prompts, every so many epochs."),
    "checkpoint": (
        Checkpoint,
        "How often the state of the run is written, and what is kept; not with trainer.enable_checkpointing=false.",
    ),
    "export": (Export, "The trained model as a Hugging Face folder; `{}` for the defaults."),
}
"""In the order in which they are called."""
OBJECTIVE = {"class_path": "dirl.objectives.DiPO"}
OF_RL = ("task", "engine", "objective", "rollout", "evaluate")
MOVED = {f"dirl.callbacks.{cls.__name__}": key for key, (cls, _) in CALLBACKS.items()}
MOVED |= {f"dirl.callbacks.{module}.{cls.__name__}": key for key, (cls, _) in CALLBACKS.items()
          for module in [cls.__module__.rsplit(".", 1)[-1]]}  # fmt: skip


RENAMED = {
    ("model", "dirl.modules.DiPOModule"): "dirl.modules.RLModule",
    ("model.class_path", "dirl.modules.DiPOModule"): "dirl.modules.RLModule",
    ("rollout.advantage", "zscore"): "{class_path: dirl.advantages.ZScore}",
    ("rollout.advantage", "mean"): "{class_path: dirl.advantages.Mean}",
    ("engine.init_args.transport", "gloo"): "http",
    ("engine.transport", "gloo"): "http",
}
"""Values that have another name now: key and value as they were, value as it is."""
MOVED_OPTIONS = {"model.init_args.loss": "objective.init_args", "model.loss": "objective.init_args"}
"""Options that have another place now, with all below them."""


def add_keys(parser: LightningArgumentParser) -> None:
    parser.add_argument("--task", type=Task | None, default=None, help="RL: what is learned, in place of data.train.")
    parser.add_argument("--engine", type=RolloutEngine | None, default=None, help="RL: what makes the trajectories.")
    parser.add_argument("--objective", type=Objective | None, default=OBJECTIVE, help="RL: what a step learns from.")
    for name, (cls, about) in CALLBACKS.items():
        parser.add_argument(f"--{name}", type=cls | None, default=None, help=about)


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise ValueError for what has a key of its own and is written elsewhere."""
    for index, callback in enumerate(config["trainer"]["callbacks"] or []):
        path = callback if isinstance(callback, str) else callback["class_path"]
        if path in MOVED:
            engine = ", and its engine under `engine`" if MOVED[path] == "rollout" else ""
            raise ValueError(
                f"trainer.callbacks[{index}]: {path} has a key of its own now: write its init_args under "
                f"`{MOVED[path]}`, at the top of the config{engine}"
            )
    if config.get("rollout") and config["rollout"]["engine"]:
        raise ValueError("rollout.engine: the engine has a key of its own: write it under `engine`, at the top")
    if (config["model"] or {}).get("init_args", {}).get("objective"):
        raise ValueError(
            "model.init_args.objective: the objective has a key of its own: write it under `objective`, at the top"
        )
    if (config["data"] or {}).get("init_args", {}).get("task"):
        raise ValueError("data.init_args.task: the task has a key of its own: write it under `task`, at the top")


def drop_default_objective(config: Any) -> None:
    """Of a parsed config whose module learns from no rollouts: it has none unless its user named one."""
    model, objective = config["model"], config["objective"]
    learns = model and resolve_name(model["class_path"]).makes_rollouts
    if objective and objective["class_path"] == OBJECTIVE["class_path"] and not learns:
        config["objective"] = None


def check_arguments(args: Sequence[str]) -> None:
    """Raise ValueError for what the parser would take wrongly, or refuse without saying what to write.

    That is a config file with both a key and `key+`, of which the parser would take one alone, and renamed values.
    """
    pairs = [
        tuple(arg.split("=", 1)) if "=" in arg else (arg, after)
        for arg, after in zip(args, [*args[1:], ""], strict=True)
    ]
    for name, value in pairs:
        _check_value(name.removeprefix("--"), value, name)
        if name in ("-c", "--config") and Path(value).is_file():
            try:
                _check_node(yaml.compose(Path(value).read_text(encoding="utf-8"), Loader=yaml.SafeLoader), (), value)
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # the parser says what is wrong with it


def _check_value(key: str, value: str, where: str) -> None:
    for old, new in MOVED_OPTIONS.items():
        if key == old or key.startswith(f"{old}."):
            raise ValueError(f"{where}: has another place now: write {key.replace(old, new)}")
    if (key, value) in RENAMED:
        raise ValueError(f"{where}: {value!r} has another name now: write {RENAMED[key, value]}")


def _check_node(node: yaml.Node | None, place: tuple[str, ...], path: str) -> None:
    if isinstance(node, yaml.ScalarNode):
        _check_value(".".join(place), node.value, f"{path}: {'.'.join(place)}")
    if not isinstance(node, yaml.MappingNode):
        return
    names = {key.value for key, _ in node.value}
    for key, value in node.value:
        if f"{key.value}+" in names:
            name = ".".join((*place, key.value))
            raise ValueError(
                f"{path}: has both {name} and {name}+, of which one would be lost; write all of it under {name}, or "
                "the addition into a further config"
            )
        if (name := ".".join((*place, key.value))) in MOVED_OPTIONS:
            _check_value(name, "", f"{path}: {name}")
        _check_node(value, (*place, key.value), path)


def callbacks_of(
    config: Mapping[str, Any],
    module: BlockDiffusionModule,
    data: L.LightningDataModule | None,
    given: Sequence[L.Callback],
) -> list[Any]:
    """The callbacks of a run: those of the keys around those of the user. What has a key is handed on."""
    if module.makes_rollouts:
        missing = [name for name in ("engine", "rollout") if not config[name]]
        if missing:
            raise ValueError(
                f"{', '.join(missing)}: not in the config, and {type(module).__name__} learns from rollouts; put "
                "configs/rl.yaml below your overlay, or see it for an example"
            )
        config["rollout"].engine = config["engine"]
        module.objective = config["objective"] or module.objective
        if isinstance(data, RLDataModule):
            data.take(config["task"])
            config["rollout"].score_by(data.task)
    elif unused := [name for name in OF_RL if config[name]]:
        raise ValueError(
            f"{', '.join(unused)}: in the config, and {type(module).__name__} makes no rollouts; remove it, or set it "
            "to null"
        )
    made = {name: config[name] for name in CALLBACKS if config[name]}
    first = [made[name] for name in ("rollout", "evaluate") if name in made]
    return [*first, *given, *(made[name] for name in ("checkpoint", "export") if name in made)]
