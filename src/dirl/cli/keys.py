"""Top-level keys of `fit` for what a run has one of: its task, its engine, and each of the project's callbacks by name.

A list of callbacks can only be replaced or appended to; a key can be set, changed in one option, or set to null by any
further config and on the command line: `--config configs/engine/torch.yaml`, `--rollout.dynamic_sampling true`.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from pkgutil import resolve_name
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from dirl.callbacks import Checkpoint, Evaluate, Export, Rollout
from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
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
DATA = (SFTDataModule, RLDataModule)
"""Imported here, so that help lists them and their names alone are enough."""
OBJECTIVE = {"class_path": "dirl.objectives.DiPO"}
OF_RL = ("task", "engine", "objective", "rollout", "evaluate")
MOVED = {f"dirl.callbacks.{cls.__name__}": key for key, (cls, _) in CALLBACKS.items()}
MOVED |= {f"dirl.callbacks.{module}.{cls.__name__}": key for key, (cls, _) in CALLBACKS.items()
          for module in [cls.__module__.rsplit(".", 1)[-1]]}  # fmt: skip


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
    """Of a parsed config whose module learns from no rollouts: it has none unless its user named one, or an option."""
    model, objective = config["model"], config["objective"]
    learns = model and resolve_name(model["class_path"]).makes_rollouts
    if not objective or learns or objective["class_path"] != OBJECTIVE["class_path"]:
        return
    options = signature(resolve_name(OBJECTIVE["class_path"])).parameters.values()
    if all(objective["init_args"][option.name] == option.default for option in options):
        config["objective"] = None


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
        module.learn_by(config["objective"] or module.objective)
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
