"""What is asked before a run is resumed: which checkpoint, whether it is of this run's kind, which settings differ."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from dirl.checkpoints.reading import Contents, newest, read

CHOSEN = "DIRL_CKPT_PATH"
"""What the first process has found for `last`, for those that it starts."""
UNCOMPARED = ("ckpt_path", "trainer.default_root_dir")


def find(ckpt_path: str, root: Path) -> Contents:
    """The checkpoint that `--ckpt_path` names (`last`: the newest whole one under `root`), looked into.

    Raises:
        ValueError: there is none, it is something else, or damaged.
    """
    first = rank_zero_only.rank in (None, 0)  # the others need not read it all
    if ckpt_path != "last":
        return read(Path(ckpt_path), first)
    chosen = None if first else os.environ.get(CHOSEN)
    path = Path(chosen) if chosen else newest(root, first)
    os.environ[CHOSEN] = str(path)
    rank_zero_info(f"ckpt_path=last: {path}")
    return read(path, thorough=False)


def check_kind(contents: Contents, module: str, block_size: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if the checkpoint is of another stage or model.

    Args:
        module: class of the LightningModule.
        shapes: of its weights by name.
    """
    path, own = contents.path, contents.own
    if own["module"] != module:
        raise ValueError(
            f"ckpt_path={path} is of a run with {own['module']}, this one has {module}: resume with the config of that "
            "run, or start a new one from its exported model (model.init_args.source.init_args.path)"
        )
    if own["block_size"] != block_size:
        raise ValueError(
            f"ckpt_path={path} was trained with block_size={own['block_size']}, the model has block_size={block_size}: "
            "resume with the block size of the checkpoint, or start a new run from its exported model"
        )
    other = [name for name, shape in shapes.items() if contents.shapes.get(name, shape) != shape]
    lost = sorted(set(shapes) ^ set(contents.shapes))
    if other:
        name, more = other[0], f" (and {len(other) - 1} more)" if other[1:] else ""
        what = f"{name} is {list(contents.shapes[name])} there and {list(shapes[name])} here{more}"
    elif lost:
        what = f"{len(lost)} weights are in only one of them, the first is {lost[0]}"
    else:
        return
    raise ValueError(f"ckpt_path={path} is of another model: {what}; resume with the model of the checkpoint")


def check_adapters(contents: Contents, lora: Mapping[str, Any] | None) -> None:
    """Raise ValueError unless the checkpoint has adapters of this rank, alpha and targets, or none as this run.

    Args:
        lora: of this run; None: it has no adapters.
    """
    before = contents.own.get("lora")
    if before == lora:
        return
    said = [f"lora: {_settings(each)}" for each in (before, lora)]
    raise ValueError(
        f"ckpt_path={contents.path} was trained with {said[0]}, this run has {said[1]}: resume with the model.lora of "
        "the checkpoint, or export it and start a new run from the folder"
    )


def _settings(lora: Mapping[str, Any] | None) -> str:
    if lora is None:
        return "null"
    return ", ".join(f"{name} {'all' if value is None else value}" for name, value in lora.items())


def check_strategy(contents: Contents, trainer: Trainer) -> None:
    """Raise ValueError if this run cannot read shards, but has to."""
    if contents.path.is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
        raise ValueError(
            f"ckpt_path={contents.path} is sharded and trainer.strategy={type(trainer.strategy).__name__} is not: "
            "resume with --config configs/strategy/fsdp.yaml, with any number of processes (also --trainer.devices=1)"
        )


def say_changes(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """One line for every setting that is not what it was; of a key that is null on one side, one for all below it."""
    for name in (name for name in {**saved, **now} if saved.get(name) != now.get(name)):
        if _is_below(name, saved) or _is_below(name, now):
            continue
        before, after = _said(name, saved), _said(name, now)
        rank_zero_info(f"resumed with another {name}: {before} in the checkpoint, now {after}")


def _is_below(name: str, settings: Mapping[str, str]) -> bool:
    """Whether a key above it has one value there, such as null."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in settings for count in range(1, len(parts)))


def _said(name: str, settings: Mapping[str, str]) -> str:
    if name in settings:
        return settings[name]
    below = {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}
    return ", ".join(f"{key} {value}" for key, value in below.items()) or "not set"


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names and values (as JSON) of what is compared on resume; items of lists of classes go by their class."""
    return {name: value for name, value in _flat(config) if name not in UNCOMPARED}


def _flat(config: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(config, list) and config and all(isinstance(i, Mapping) and "class_path" in i for i in config):
        for item in config:
            yield from _flat(dict(item), f"{prefix}.{item['class_path'].rsplit('.', 1)[-1]}")
    else:
        yield prefix, json.dumps(config, default=str)
