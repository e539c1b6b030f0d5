"""LoRA: low-rank adapters of peft on the linear layers of a frozen backbone."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dirl.models.families import ModelFamily, Parts
from dirl.models.families.low_rank import ADAPTER, adapted
from dirl.models.families.weights import empty_backbone
from dirl.models.source import ModelDescription
from dirl.seeds import derived_seed, run_seed


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters learn, the model that they are on is frozen: a matrix W becomes W + alpha / rank * B A.

    Without dropout: what the policy says of a sample is to be the same each time that it is asked.

    Args:
        rank: of A [rank, in] and B [out, rank].
        alpha: over the rank, what the product is scaled by.
        targets: names of linear layers in the decoder layers, or the ends of names: `q_proj`, `mlp.down_proj`,
            `layers.0.self_attn.q_proj`; None: all of them. Experts that lie in one tensor are none.
        adapter: folder with an adapter of the same base, rank, alpha and targets to go on from; None: a new one, of
            which A is random and B zero.
        seed: of a new A; None: that of `seed_everything`.
    """

    rank: int = 32
    alpha: float = 64.0
    targets: list[str] | None = None
    adapter: str | None = None
    seed: int | None = field(default=None)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"model.lora.rank={self.rank}: use at least 1, e.g. 32")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"model.lora.alpha={self.alpha}: use a positive, finite number, e.g. twice the rank")
        if self.targets is not None and not self.targets:
            raise ValueError("model.lora.targets=[]: name at least one linear layer, or null for all")
        run_seed(self.seed, "model.lora.seed")

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def settings(self) -> dict[str, Any]:
        """What another run has to have in common with this one to go on with its adapters."""
        targets = None if self.targets is None else sorted(self.targets)
        return {"rank": self.rank, "alpha": float(self.alpha), "targets": targets}


def with_adapters(config: LoRAConfig | None, description: ModelDescription, source: object) -> nn.Module:
    """The backbone without values, with its adapters; ValueError if they cannot be put on it. No weight is read."""
    backbone = empty_backbone(description.family, description.config, torch.float32)
    if config is not None:
        add_adapters(backbone, description.family, config, source)
    return backbone


def target_names(config: LoRAConfig, backbone: nn.Module, parts: Parts) -> list[str]:
    """The names of the layers that get an adapter, in their order; ValueError for a target that is no such layer."""
    linear = [
        name
        for name, module in backbone.named_modules()
        if name.startswith(f"{parts.layers}.") and isinstance(module, nn.Linear)
    ]
    if config.targets is None:
        return linear
    for target in config.targets:
        if not any(_ends(name, target) for name in linear):
            raise ValueError(_why_not(target, backbone, sorted({name.rpartition(".")[2] for name in linear})))
    return [name for name in linear if any(_ends(name, target) for target in config.targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _why_not(target: str, backbone: nn.Module, known: list[str]) -> str:
    """What a target is that is no linear layer of a decoder layer, in words."""
    parameters = [name for name, value in backbone.named_parameters() if value.dim() == 3]
    if any(_ends(name, target) or _ends(name.rpartition(".")[0], target) for name in parameters):
        what = "is the experts of a layer, which lie in one tensor of three dimensions and get no adapters"
    elif any(_ends(name, target) for name, _ in backbone.named_modules()):
        what = "is no linear layer within the decoder layers"
    else:
        what = "matches nothing in the model"
    return f"model.lora.targets: {target!r} {what}; use some of {', '.join(known)}, or null for all of them"


def add_adapters(backbone: nn.Module, family: ModelFamily, config: LoRAConfig, source: object = None) -> None:
    """Freeze the backbone, whose weights may be on the meta device, and put trainable adapters on its targets.

    They are fp32 at least, and never on the meta device.

    Args:
        source: of the backbone; an adapter that is gone on from has to be one of this.
    """
    peft, names = _peft(), target_names(config, backbone, family.parts)
    values = _adapter_files(config, names, source)
    backbone.requires_grad_(False)
    options = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, init_lora_weights=False)
    peft.inject_adapter_in_model(options, backbone, low_cpu_mem_usage=True)
    for name, layer in adapted(backbone):
        down, up = (kind[ADAPTER] for kind in (layer.lora_A, layer.lora_B))
        base = layer.base_layer.weight
        found = _new(config, name, *base.shape) if values is None else values.read(name, tuple(base.shape))
        device = torch.device("cpu") if base.is_meta else base.device
        for module, value in zip((down, up), found, strict=True):
            module.weight = nn.Parameter(value.to(device, torch.promote_types(torch.float32, base.dtype)))
        layer.cast_input_dtype_enabled = base.dtype == down.weight.dtype  # else autocast, or FSDP2, casts what is to be
    assert len([*adapted(backbone)]) == len(names)


def _new(config: LoRAConfig, name: str, size_out: int, size_in: int) -> tuple[Tensor, Tensor]:
    """A uniform in 1 / sqrt(in), as peft's; the same whatever the number of processes, by the layer's name."""
    generator = torch.Generator().manual_seed(derived_seed("lora", run_seed(config.seed), name))
    bound = 1 / math.sqrt(size_in)
    with torch.device("cpu"):
        down = torch.empty(config.rank, size_in, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        return down, torch.zeros(size_out, config.rank, dtype=torch.float32)


def _adapter_files(config: LoRAConfig, names: list[str], source: object) -> Any:
    """What `config.adapter` names, looked at; None without one."""
    if config.adapter is None:
        return None
    from dirl.models.adapter_files import AdapterFiles  # which needs this file

    return AdapterFiles.open(config, names, source)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("model.lora needs peft: pip install 'dirl[lora]', or set model.lora=null") from error
    return peft
