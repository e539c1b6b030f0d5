"""Weights read one tensor at a time from safetensors files, into a model that was built without any.

A process that keeps a shard of the model then never holds more of it than the layer at hand.
"""

import ctypes
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor, nn

from dirl.finite import check_weight
from dirl.models.families import ModelFamily
from dirl.models.families.low_rank import own_name
from dirl.models.families.weights import named_tensors

BROKEN_SOURCE = "nothing can be made with such a model; read another copy or an earlier checkpoint"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """The tensors of a Hugging Face folder, by the names that the backbone of a family has for them.

    Args:
        dtype: of the weights that are read; None: as stored. Buffers have the dtype that the model has for them.
    """

    def __init__(self, folder: Path, family: ModelFamily, dtype: torch.dtype | None = None) -> None:
        self.folder, self.family, self.dtype = folder, family, dtype
        self.file_of = _file_of(folder)
        self.open = cache(lambda file: safe_open(folder / file, "pt", device="cpu"))  # each reads a header of all names

    def fill(self, module: nn.Module, prefix: str = "") -> None:
        """Give the module's weights and stored buffers on the meta device their values, on the host.

        Args:
            prefix: name of the module in the whole model, with a dot at its end.

        Raises:
            ValueError: a tensor is not there, of another shape, or holds numbers that are not finite.
        """
        for name, empty in [each for each in named_tensors(module) if each[1].is_meta]:
            known = own_name(prefix + name)
            weight = isinstance(empty, nn.Parameter)
            value = self.read(known, empty.shape, self.dtype if weight else empty.dtype)
            value = check_weight(known, value, str(self.folder), BROKEN_SOURCE)
            self._check_shape(known, value.shape, empty.shape)
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(value, empty.requires_grad) if weight else value)
        self.forget()

    def forget(self) -> None:
        """Let go of the files, whose pages stay resident as long as they are open, and of what the allocator keeps."""
        self.open.cache_clear()
        give_back()

    def read(self, name: str, shape: torch.Size, dtype: torch.dtype | None = None) -> Shaped[Tensor, "..."]:
        """One tensor of the backbone, put together where the files keep it in parts.

        Args:
            dtype: None: as stored.
        """
        if name in self.file_of:
            return self._stored(name, dtype)
        parts = [part for part, _ in self.family.split(name, torch.empty(shape, device="meta"))]
        for part in parts:
            if part not in self.file_of:
                raise ValueError(f"{self.folder}: no tensor {part!r} in its safetensors files; the model needs it")
        whole = torch.empty(shape, dtype=self._stored(parts[0], dtype).dtype)
        for part, view in self.family.split(name, whole):
            value = self._stored(part, dtype)
            self._check_shape(part, value.shape, view.shape)
            view.copy_(value)
        return whole

    def _stored(self, name: str, dtype: torch.dtype | None) -> Tensor:
        value = self.open(self.file_of[name]).get_tensor(name)
        return value if dtype is None or not value.is_floating_point() else value.to(dtype)

    def _check_shape(self, name: str, found: torch.Size, wanted: torch.Size) -> None:
        if found != wanted:
            raise ValueError(
                f"{self.folder}: {name} has shape {tuple(found)}, the model's config says {tuple(wanted)}; the files "
                "belong to another config.json"
            )


def give_back() -> None:
    """Have the C library give freed memory to the system, where it can: it keeps what is below 32 MiB for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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


def _file_of(folder: Path) -> dict[str, str]:
    """The file of each stored tensor, by its name."""
    index = folder / INDEX
    if index.is_file():
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return {name: SINGLE for name in _names(folder / SINGLE)}


def _names(path: Path) -> Iterator[str]:
    with safe_open(path, "pt", device="cpu") as file:
        yield from file.keys()
