"""An adapter as a folder that peft and transformers load: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors import safe_open
from torch import Tensor, nn

from dirl.finite import check_weight
from dirl.models.families.low_rank import adapted, low_ranks, whole
from dirl.models.folder import replace_folder
from dirl.models.lora import LoRAConfig
from dirl.models.source import ModelSource, PretrainedModel
from dirl.models.weight_writer import finite, save_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before a name in the backbone."""
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "fan_in_fan_out": False}
"""Options of peft's with any other value of which an adapter is not W + alpha / rank * B A."""


def base_name(source: ModelSource) -> str:
    """What an adapter says of its base; ValueError where nobody could find it again."""
    if not isinstance(source, PretrainedModel) or source.checkpoint is not None:
        raise ValueError(
            "export.form=adapter: an adapter names its base, a model folder or a hub name, and model.source is "
            f"{'a checkpoint' if isinstance(source, PretrainedModel) else type(source).__name__}: train from an "
            "exported folder, or use export.form=merged"
        )
    if not source.fills_masks:
        raise ValueError(
            f"export.form=adapter: the base {source.path!r} has no row for the mask token, so an adapter would not fit "
            "it; use export.form=merged"
        )
    folder = Path(source.path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else source.path


def named_adapters(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Both factors of each adapted layer by peft's names, whole, one at a time; call it on all ranks."""
    added = low_ranks(backbone)
    for name, _ in adapted(backbone):
        low_rank = added[f"{name}.weight"]
        yield f"{PREFIX}{name}.lora_A.weight", whole(low_rank.down.detach())
        yield f"{PREFIX}{name}.lora_B.weight", whole(low_rank.up.detach())


def write_adapter(folder: Path, adapters: Iterator[tuple[str, Tensor]], config: LoRAConfig, base: str) -> None:
    """Write it beside `folder`, then put it in its place in one step; ValueError for numbers that are not finite."""
    replace_folder(folder, lambda new: _write(new, adapters, config, base))


def _write(folder: Path, adapters: Iterator[tuple[str, Tensor]], config: LoRAConfig, base: str) -> None:
    from peft import LoraConfig

    tensors = {name: finite(name, value).cpu().contiguous() for name, value in adapters}
    leaves = sorted({name.split(".")[-3] for name in tensors})
    options = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=leaves if config.targets is None else sorted(config.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    options.save_pretrained(str(folder))
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    written["target_modules"].sort()  # a set, in another order in each process
    (folder / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tensors(tensors, folder / WEIGHTS)


class AdapterFiles:
    """An adapter to go on from, layer by layer.

    Args:
        folder: with peft's two files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = safe_open(folder / WEIGHTS, "pt", device="cpu")

    @classmethod
    def open(cls, config: LoRAConfig, names: list[str], source: object) -> "AdapterFiles":
        """The adapter of `config.adapter`; ValueError unless it is of this base, and of these layers, rank and alpha.

        Args:
            names: of the layers that get one.
            source: of the base.
        """
        assert config.adapter is not None
        folder = Path(config.adapter).expanduser()
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise ValueError(
                    f"model.lora.adapter={config.adapter!r}: there is no {file} in it; name a folder that "
                    "export.form=adapter or peft has written"
                )
        _check_options(config, json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        found = cls(folder)
        found._check_names(config, names)
        _check_base(config, source)
        return found

    def _check_names(self, config: LoRAConfig, names: list[str]) -> None:
        stored = set(self.file.keys())
        wanted = {key for name in names for key in _keys(name)}
        if stored == wanted:
            return
        more, less = sorted(stored - wanted), sorted(wanted - stored)
        what = f"has {more[0]!r}, which model.lora.targets leave out" if more else f"lacks {less[0]!r}"
        raise ValueError(
            f"model.lora.adapter={config.adapter!r} is of other targets: it {what}; set model.lora.targets to those of "
            f"its {CONFIG}, or train a new adapter"
        )

    def read(self, name: str, base: tuple[int, int]) -> tuple[Float32[Tensor, "rank in"], Float32[Tensor, "out rank"]]:
        """Both factors of a layer whose matrix is [out, in]."""
        down, up = (
            check_weight(key, self.file.get_tensor(key), str(self.folder), "use another adapter") for key in _keys(name)
        )
        if (up.shape[0], down.shape[1]) != base or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"{self.folder} is an adapter of another base: {name} is {list(base)} here and "
                f"[{up.shape[0]}, {down.shape[1]}] there; name the model that it was trained on as the source"
            )
        return down.to(torch.float32), up.to(torch.float32)


def _keys(name: str) -> tuple[str, str]:
    return f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"


def _check_options(config: LoRAConfig, found: Mapping[str, Any]) -> None:
    name = f"model.lora.adapter={config.adapter!r}"
    if found.get("peft_type") != "LORA":
        raise ValueError(f"{name}: its peft_type is {found.get('peft_type')!r}, and only LORA can be gone on from")
    for option, value in PLAIN.items():
        if found.get(option, value) != value:
            raise ValueError(f"{name}: its {option} is {found[option]!r}, and only {value!r} is supported")
    for option in ("rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"):
        if found.get(option):
            raise ValueError(f"{name}: its {option} is {found[option]!r}; only one rank and alpha for all is supported")
    if (found["r"], float(found["lora_alpha"])) != (config.rank, float(config.alpha)):
        raise ValueError(
            f"{name} has rank {found['r']} and alpha {found['lora_alpha']}, the config rank {config.rank} and alpha "
            f"{config.alpha}: set model.lora.rank and model.lora.alpha to the adapter's"
        )


def _check_base(config: LoRAConfig, source: object) -> None:
    """Raise ValueError for an adapter of another base, by name: the base's content is not looked at."""
    assert config.adapter is not None
    path = Path(config.adapter).expanduser() / CONFIG
    named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(source, PretrainedModel) or not isinstance(named, str):
        here = type(source).__name__
    elif named in (source.path, str(Path(source.path).expanduser().resolve())):
        return
    else:
        here = source.path
    raise ValueError(
        f"model.lora.adapter={config.adapter!r} is an adapter of another base: of {named!r}, the source is {here!r}; "
        f"name that model as the source or, if it has moved, write where it is into {path}"
    )
