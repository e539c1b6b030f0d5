"""A parsed config read as what a plan needs; nothing of it is instantiated but the model's source."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_type_hints

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from transformers import PreTrainedConfig

from dirl.diffusion.block_schedule import BlockSchedule
from dirl.diffusion.noise import NoiseConfig
from dirl.models import ModelSource
from dirl.models.families import family_of
from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.lora import LoRAConfig
from dirl.models.shape import ModelShape
from dirl.models.tensor_parallel import check_tensor_parallel
from dirl.modules.layers import Checkpointing, check_checkpointing
from dirl.modules.value import ValueConfig, check_needed
from dirl.objectives import Objective
from dirl.planning.adapters import AdapterShape
from dirl.planning.named_shapes import SHAPES, named_or_file
from dirl.planning.setup import StrategyName
from dirl.rollout import RolloutEngine
from dirl.strategy import MeshShape, mesh_shape

Config = Mapping[str, Any]
STRATEGIES: dict[type[Strategy], StrategyName] = {
    ModelParallelStrategy: "fsdp2",
    DDPStrategy: "ddp",
    SingleDeviceStrategy: "single",
}
"""Lightning's classes whose memory is known here."""


@dataclass(frozen=True)
class Settings:
    """What a config says, with the defaults of the classes that it names."""

    stage: Literal["sft", "rl"]
    shape: ModelShape
    block_size: int
    half_weights: bool
    """The model's own dtype is of two bytes."""
    devices: int
    strategy: StrategyName
    bucket_view: bool
    mixed: bool
    model: Config
    """Options of the module, as in `model.init_args`."""
    data: Config
    engine: tuple[type[RolloutEngine], Config] | None
    """Its class, and its options by name."""
    objective: Objective | None
    value: ModelShape | None = None
    """The shape of a value model with a backbone of its own; a head on the policy's takes next to nothing."""
    adapters: AdapterShape | None = None
    """The adapters that learn by LoRA; None: all weights learn."""
    mesh: MeshShape | None = None
    """How FSDP2 divides the devices; None: another strategy."""
    cpu_offload: bool = False
    steps: int | None = None
    """Rollouts (RL) or optimizer steps (SFT) of the whole run; None: the config alone does not say."""
    adapter_export: bool = False

    @property
    def shares(self) -> int:
        """Devices that have different data."""
        return self.devices if self.mesh is None else self.mesh.replicas * self.mesh.shards

    @property
    def checkpointing(self) -> Checkpointing:
        value = self.model["activation_checkpointing"]
        mode: Any = {True: "full", False: "none"}.get(value, value)  # until it has been checked
        check_checkpointing(mode)
        return mode

    @property
    def noise(self) -> NoiseConfig:
        return NoiseConfig(**self.data["noise"])

    @property
    def block_sizes(self) -> list[int]:
        """That the run goes through; of a schedule, or the model's own."""
        scheduled = self.data.get("block_schedule") if self.stage == "sft" else None
        if scheduled is None:
            return [self.block_size]
        schedule = BlockSchedule(**scheduled)
        schedule.check(self.block_size, None)
        return schedule.sizes

    @property
    def kl(self) -> bool:
        """Whether a reference model is held."""
        return self.objective is not None and bool(self.objective.needs_reference)

    @property
    def updates(self) -> int:
        """The number of optimizer steps between two rollouts."""
        return self.data["steps_per_rollout"] * self.data["passes"] if self.stage == "rl" else 1


def read_settings(config: Config, devices: int | None, model_config: str | None) -> Settings:
    """The settings in a config that `fit` has parsed.

    Args:
        devices: in all; None: as many as the config says.
        model_config: stands for the model of the config; see `dirl.planning.named_shapes.named_or_file`.
    """
    trainer, model, data = config["trainer"], config["model"], config["data"]
    module = resolve_name(model["class_path"])
    learns: bool = module.makes_rollouts
    if data is None:
        raise ValueError("the config names no data: put a recipe below your overlay, e.g. --config configs/rl.yaml")
    count = devices if devices is not None else _devices(trainer)
    if count < 1:
        raise ValueError(f"devices={count}: use at least 1")
    strategy, options = _strategy(trainer["strategy"], count)
    precision = str(trainer["precision"] or "32-true")
    if precision not in ("32-true", "32", "bf16-mixed"):
        raise ValueError(f"trainer.precision={precision!r}: plan knows 32-true and bf16-mixed")
    shape, block_size, half = _model(model["init_args"]["source"], model_config)
    objective = (_instance(config["objective"]) or module.default_objective()) if learns else None
    mesh = _mesh(trainer, strategy, options, count)
    adapters = _adapters(model["init_args"]["lora"])
    if mesh is not None and mesh.tensor > 1:
        plan = None if shape.experts else TensorPlan((), (), ())
        check_tensor_parallel(mesh.tensor, plan, shape, model_config or "the config's", adapters is not None)
    return Settings(
        stage="rl" if learns else "sft",
        shape=shape,
        block_size=block_size,
        half_weights=half,
        devices=count,
        strategy=strategy,
        bucket_view=bool(options.get("gradient_as_bucket_view")),
        mixed=precision == "bf16-mixed",
        model=model["init_args"],
        data=data["init_args"],
        engine=_engine(config["engine"]) if learns else None,
        objective=objective,
        value=None if objective is None else _value(model["init_args"]["value"], objective, shape),
        adapters=adapters,
        mesh=mesh,
        cpu_offload=bool(options.get("cpu_offload")),
        steps=_steps(trainer, data["init_args"], learns),
        adapter_export=(config.get("export") or {}).get("form") == "adapter",
    )


def _mesh(trainer: Config, strategy: StrategyName, options: Config, devices: int) -> MeshShape | None:
    """Hosts have as many devices as the config says, or share all alike."""
    if strategy != "fsdp2":
        return None
    named, hosts = trainer["devices"], int(trainer["num_nodes"])
    per_host = len(named) if isinstance(named, list) else int(named) if str(named).isdigit() else devices // hosts
    per_host = min(max(per_host, 1), devices)
    hosts = devices // per_host
    if hosts * per_host != devices:
        raise ValueError(f"devices={devices} are no whole hosts of {per_host}: set trainer.devices, of one host")
    return mesh_shape(hosts, per_host, options.get("shard_size", "all"), int(options.get("tensor_parallel_size", 1)))


def _steps(trainer: Config, data: Config, learns: bool) -> int | None:
    """An epoch of RL is a rollout; how many steps one of SFT has, its data alone knows."""
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    found = [epochs] if learns and epochs is not None and epochs > 0 else []
    if steps is not None and steps > 0:
        found.append(-(-steps // (data["steps_per_rollout"] * data["passes"])) if learns else steps)
    return min(found, default=None)


def _devices(trainer: Config) -> int:
    """Devices of a host, times hosts."""
    devices = trainer["devices"]
    per_host = len(devices) if isinstance(devices, list) else devices
    if isinstance(per_host, str) and per_host.isdigit():
        per_host = int(per_host)
    if not isinstance(per_host, int) or per_host < 1:
        raise ValueError(f"trainer.devices={devices!r} is no number: say how many devices in all with --devices")
    return per_host * int(trainer["num_nodes"])


def _strategy(value: str | Config, devices: int) -> tuple[StrategyName, Config]:
    if value == "auto":
        return ("single" if devices == 1 else "ddp"), {}
    if isinstance(value, str):
        name, options = value, {}
        made: type = Strategy
        if value in StrategyRegistry:
            made, options = StrategyRegistry[value]["strategy"], StrategyRegistry[value]["init_params"]
    else:
        made, options = resolve_name(value["class_path"]), value.get("init_args") or {}
        name = made.__name__
    kind = _kind(made)
    if kind is None:
        raise ValueError(f"trainer.strategy={name!r}: plan knows a single device, DDP and FSDP2")
    if kind == "single" and devices > 1:
        raise ValueError(f"trainer.strategy={name!r} runs on one device, devices={devices}: choose DDP or FSDP2")
    return kind, {**options, **(options.get("dict_kwargs") or {})}


def _kind(made: type) -> StrategyName | None:
    """Its kind, by the class of Lightning's that it derives from: DeepSpeed's is a DDPStrategy, and not known."""
    return STRATEGIES.get(next((base for base in made.__mro__ if base.__module__.startswith("lightning.")), made))


def _model(config: Config, model_config: str | None) -> tuple[ModelShape, int, bool]:
    """Shape, block size, and whether the model's dtype has two bytes."""
    source: ModelSource = _instance(config)
    half = True
    if model_config is not None:
        shape, known = named_or_file(model_config)
    else:
        found = _reachable(source)
        family = family_of(found)
        family.check(found, found.name_or_path or found.model_type)
        shape, known = family.shape(found), getattr(found, "block_size", None)
        half = found.dtype in (torch.bfloat16, torch.float16)
    block_size = getattr(source, "block_size", None) or known
    if block_size is None:
        raise ValueError("block_size: the model's config has none; set --model.init_args.source.init_args.block_size")
    return shape, block_size, half


def _value(config: Config | None, objective: Objective, policy: ModelShape) -> ModelShape | None:
    """The shape of its backbone, if it has one; ValueError if it is not what the objective learns from."""
    value = None if config is None else ValueConfig(_instance(config["source"]), shared=config["shared"])
    check_needed(value, objective)
    if value is None or value.shared:
        return None
    if value.source is None:
        return policy
    found = _reachable(value.source)
    return family_of(found).shape(found)


def _adapters(config: Config | None) -> AdapterShape | None:
    if config is None:
        return None
    lora = LoRAConfig(**config)
    return AdapterShape.of(lora.rank, lora.targets)


def _reachable(source: ModelSource) -> PreTrainedConfig:
    try:
        return source.read_config()
    except OSError as error:
        raise ValueError(
            f"the config of the model {getattr(source, 'path', source)!r} is neither here nor on the hub: give its "
            f"shape with --model_config, a config.json or one of {', '.join(SHAPES)}"
        ) from error


def _instance(value: Any) -> Any:
    """The object that a class path and its options stand for; anything else is what it is."""
    value = value.as_dict() if isinstance(value, Namespace) else value
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    made = getattr(importlib.import_module(module), name)
    types = get_type_hints(made.__init__)
    return made(**{key: _typed(_instance(o), types.get(key)) for key, o in (value.get("init_args") or {}).items()})


def _typed(value: Any, wanted: Any) -> Any:
    """Options of a dataclass as that, as `fit` has them."""
    found = [kind for kind in (wanted, *get_args(wanted)) if isinstance(kind, type) and is_dataclass(kind)]
    return found[0](**value) if isinstance(value, dict) and found else value


def _engine(engine: Config | None) -> tuple[type[RolloutEngine], Config]:
    if engine is None:
        raise ValueError("engine: the config names none; put e.g. configs/engine/lmdeploy.yaml on top")
    return resolve_name(engine["class_path"]), engine.get("init_args") or {}


UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20, "TB": 10**12}


def parse_bytes(text: str, name: str) -> float:
    """The bytes of a text such as 80GB, 79.6GiB or 512MiB."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"{name}={text!r}: use a number and a unit, e.g. 80GB or 79GiB")
    return float(match[1]) * UNITS[match[2].upper()]
