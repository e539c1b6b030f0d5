"""Weights read one tensor at a time from safetensors files, into a model that was built without any.

A process that keeps a shard of the model then never holds more of it than the layer at hand.
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dirl.attention import ATTENTION_NAME
from dirl.finite import check_weight

BROKEN_SOURCE = "nothing can be made with such a model; read another copy or an earlier checkpoint"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """The tensors of a Hugging Face folder, by the names that transformers' Qwen3 and Qwen3-MoE have for them.

    Args:
        dtype: of what is read; None: as stored.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        self.folder, self.dtype = folder, dtype
        self.file_of = _file_of(folder)
        self.open = cache(lambda file: safe_open(folder / file, "pt", device="cpu"))  # each reads a header of all names

    def fill(self, module: nn.Module, prefix: str = "") -> None:
        """Give the module's weights on the meta device their values, on the host.

        Args:
            prefix: name of the module in the whole model, with a dot at its end.

        Raises:
            ValueError: a tensor is not there, of another shape, or holds numbers that are not finite.
        """
        for name, parameter in list(module.named_parameters()):
            if parameter.is_meta:
                value = check_weight(prefix + name, self.read(prefix + name), str(self.folder), BROKEN_SOURCE)
                if value.shape != parameter.shape:
                    raise ValueError(
                        f"{self.folder}: {prefix}{name} has shape {tuple(value.shape)}, the model's config says "
                        f"{tuple(parameter.shape)}; the files belong to another config.json"
                    )
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, nn.Parameter(value, parameter.requires_grad))

    def read(self, name: str) -> Tensor:
        """One tensor of the model; the experts of a layer are put together where the files hold each of them."""
        if name in self.file_of:
            return self._stored(name)
        if found := _EXPERTS.fullmatch(name):
            return self._experts(found["layer"], found["kind"])
        raise ValueError(f"{self.folder}: no tensor {name!r} in its safetensors files; the model needs it")

    def _experts(self, layer: str, kind: str) -> Tensor:
        """[experts, out, in] from one matrix for each expert and projection."""
        projections = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        experts = []
        while f"{layer}.{len(experts)}.{projections[0]}.weight" in self.file_of:
            expert = f"{layer}.{len(experts)}"
            experts.append(torch.cat([self._stored(f"{expert}.{projection}.weight") for projection in projections]))
        if not experts:
            raise ValueError(f"{self.folder}: no tensor {layer}.{kind!r} nor its single experts in the files")
        return torch.stack(experts)

    def _stored(self, name: str) -> Tensor:
        value = self.open(self.file_of[name]).get_tensor(name)
        return value if self.dtype is None else value.to(self.dtype)


_EXPERTS = re.compile(r"(?P<layer>.*\.mlp\.experts)\.(?P<kind>gate_up_proj|down_proj)")


def one_expert_each(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Experts that transformers keeps together, [E, 2I, D] and [E, D, I], as views under the names of checkpoints."""
    for name, value in weights:
        owner, _, kind = name.rpartition(".")
        if not owner.endswith(".experts"):
            yield name, value
            continue
        for index, expert in enumerate(value):
            parts = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True)
            for part, matrix in parts if kind == "gate_up_proj" else [("down_proj", expert)]:
                yield f"{owner}.{index}.{part}.weight", matrix


def holds_weight_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SINGLE, INDEX))


def stored_dtype(folder: Path) -> torch.dtype:
    """What the weights of a folder are stored as, by the first of them; float32 where it has no such files."""
    if not holds_weight_files(folder):
        return torch.float32
    file_of = _file_of(folder)
    name = min(file_of)
    with safe_open(folder / file_of[name], "pt", device="cpu") as file:
        return file.get_slice(name)[:1].dtype


def empty_backbone(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The backbone with its weights on the meta device, its few buffers on the host."""
    config = copy.deepcopy(config)  # the dtype is written into it
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    with torch.device("cpu"):
        rotary = type(backbone.model.rotary_emb)(config=config)
    backbone.model.rotary_emb = rotary
    left = [name for name, buffer in backbone.named_buffers() if buffer.is_meta]
    assert not left, f"buffers without values: {left}"
    return backbone


def _file_of(folder: Path) -> dict[str, str]:
    """Name of each stored tensor -> file."""
    index = folder / INDEX
    if index.is_file():
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return {name: SINGLE for name in _names(folder / SINGLE)}


def _names(path: Path) -> Iterator[str]:
    with safe_open(path, "pt", device="cpu") as file:
        yield from file.keys()
