"""Top-level keys of `fit` for what a run has one of: its task, its engine, and each of the project's callbacks by name.

A list of callbacks can only be replaced or appended to; a key can be set, changed in one option, or set to null by any
further config and on the command line: `--config configs/engine/torch.yaml`, `--rollout.dynamic_sampling true`.
"""

import re
from collections.abc import Mapping, Sequence
from inspect import signature
from pkgutil import resolve_name
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from dirl.callbacks import Checkpoint, Evaluate, Export, Rollout, Samples, Throughput
from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
from dirl.modules import BlockDiffusionModule, RLModule
from dirl.objectives import Objective
from dirl.rollout import RolloutEngine
from dirl.tasks import Task

CALLBACKS: dict[str, tuple[type[L.Callback], str]] = {
    "rollout": (Rollout, "RL: rewards, filters and how the groups of each epoch are made."),
    "evaluate": (Evaluate, "RL: responses to the validation prompts, every so many epochs."),
    "samples": (Samples, "RL: a few responses in words, every so many epochs; `{}` for the defaults."),
    "checkpoint": (
        Checkpoint,
        "How often the state of the run is written, and what is kept; not with trainer.enable_checkpointing=false.",
    ),
    "export": (Export, "The trained model as a Hugging Face folder; `{}` for the defaults."),
    "throughput": (Throughput, "How fast a run is, which is logged in any case; null for the defaults."),
}
"""In the order in which they are called."""
DATA = (SFTDataModule, RLDataModule)
"""Imported here, so that help lists them and their names alone are enough."""
OBJECTIVE = {"class_path": "dirl.objectives.DiPO"}
OF_RL = ("engine", "objective", "rollout", "evaluate", "samples")
MOVED = {f"dirl.callbacks.{cls.__name__}": key for key, (cls, _) in CALLBACKS.items()}
MOVED |= {f"dirl.callbacks.{module}.{cls.__name__}": key for key, (cls, _) in CALLBACKS.items()
          for module in [cls.__module__.rsplit(".", 1)[-1]]}  # fmt: skip


def add_keys(parser: LightningArgumentParser) -> None:
    parser.add_argument("--task", type=Task | None, default=None, help="What is learned, in place of data.train.")
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


def check_checkpoints(config: Mapping[str, Any], args: Sequence[str]) -> None:
    """Of a run that writes none: ValueError for an option of `checkpoint` on the command line, a warning for the key.

    A config may have the key and the command line switch checkpoints off.
    """
    if config["checkpoint"] is None or config["trainer"]["enable_checkpointing"] is not False:
        return
    none = "trainer.enable_checkpointing=false, so that no checkpoint is written"
    given = [arg.partition("=")[0] for arg in args if re.match(r"--checkpoint(\.|=|$)", arg)]
    if given:
        raise ValueError(f"{given[0]}: {none}; give --trainer.enable_checkpointing true beside it")
    rank_zero_warn(f"checkpoint: in the config, and {none}")


INSTEAD = {
    "accumulate_grad_batches": (
        1,
        "a batch is an optimizer step already, of as many micro-batches as data.token_budget makes of it: set "
        "data.global_batch_size (SFT) or data.prompts_per_rollout (RL)",
    ),
    "gradient_clip_val": (None, "gradients are clipped by the module: set model.optimizer.max_grad_norm"),
    "gradient_clip_algorithm": (None, "gradients are clipped by the module, to the norm model.optimizer.max_grad_norm"),
    "overfit_batches": (0.0, "no dataloader here can be cut so: give data.train fewer rows"),
}
"""Options of Lightning's trainer that have no part in a training of ours: their default, and what there is instead."""


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """ValueError for an option that Lightning would refuse in words of its own, or could not obey."""
    for name, (default, instead) in INSTEAD.items():
        if trainer[name] not in (default, None):
            raise ValueError(f"trainer.{name}={trainer[name]}: {instead}")


def drop_defaults(config: Any) -> None:
    """Of a parsed config whose module learns from no rollouts: no objective and no rollout, unless an option is set.

    The objective has a default, and the overlay of a task says that the rewards of a rollout are the task's.
    """
    model, objective, rollout = config["model"], config["objective"], config["rollout"]
    if not model or resolve_name(model["class_path"]).makes_rollouts:
        return
    default = objective and objective["class_path"] == OBJECTIVE["class_path"]
    if default and not changed(resolve_name(OBJECTIVE["class_path"]), objective["init_args"]):
        config["objective"] = None
    if rollout and not changed(Rollout, rollout):
        config["rollout"] = None


def check_stage(config: Mapping[str, Any]) -> None:
    """Of a parsed config without what stood there by default: ValueError for data, or for keys, of the other stage."""
    if not config["model"] or not config["data"]:
        return
    module, data = (resolve_name(config[name]["class_path"]) for name in ("model", "data"))
    if module.makes_rollouts and not issubclass(data, RLDataModule):
        raise ValueError(
            f"data: {data.__name__}, and {module.__name__} learns from rollouts: use dirl.data.rl.RLDataModule, e.g. "
            "by configs/data/local_rl.yaml on top"
        )
    if module.makes_rollouts:
        return
    if issubclass(data, RLDataModule):
        raise ValueError(
            f"data: {data.__name__} holds prompts for rollouts, and {module.__name__} makes none: use "
            "dirl.data.sft.SFTDataModule, e.g. by configs/data/local_sft.yaml on top, or begin with configs/rl.yaml"
        )
    if unused := [name for name in OF_RL if config[name]]:
        raise ValueError(
            f"{', '.join(unused)}: in the config, and {module.__name__} makes no rollouts; remove it, or set it to null"
        )


def changed(cls: type, options: Mapping[str, Any]) -> bool:
    """Whether any option of a class, or of the bases that its `**options` go to, is not its default."""
    defaults = {
        option.name: option.default
        for base in reversed(cls.__mro__)
        if "__init__" in vars(base)
        for option in signature(base).parameters.values()
    }
    return any(value != defaults[name] for name, value in options.items())


def callbacks_of(
    config: Mapping[str, Any],
    module: BlockDiffusionModule,
    data: L.LightningDataModule | None,
    given: Sequence[L.Callback],
) -> list[Any]:
    """The callbacks of a run: those of the keys around those of the user. What has a key is handed on."""
    if isinstance(data, DATA):
        data.take(config["task"])
    elif config["task"]:
        raise ValueError(
            f"task: in the config, and data is none of {', '.join(cls.__name__ for cls in DATA)}, which take one; name "
            "one of them by data, or set the task to null"
        )
    if module.makes_rollouts:
        missing = [name for name in ("engine", "rollout") if not config[name]]
        if missing:
            raise ValueError(
                f"{', '.join(missing)}: not in the config, and {type(module).__name__} learns from rollouts; put "
                "configs/rl.yaml below your overlay, or see it for an example"
            )
        config["rollout"].engine = config["engine"]
        assert isinstance(module, RLModule), "no other makes rollouts"
        module.use(config["objective"] or module.objective)
        if isinstance(data, RLDataModule):
            config["rollout"].score_by(data.task)
    made = {name: config[name] for name in CALLBACKS if config[name]}
    first = [made[name] for name in ("rollout", "evaluate", "samples") if name in made]
    return [*first, *given, *(made[name] for name in ("checkpoint", "export", "throughput") if name in made)]
