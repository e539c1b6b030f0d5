"""Weights to safetensors files, a file at a time: what is gathered or read goes to disk before more of it comes."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dirl.finite import check_weight
from dirl.models.weight_files import INDEX

MAX_SHARD = "5GB"


def write_weights(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    max_shard_size: str | int = MAX_SHARD,
    fp32: Collection[str] = (),
) -> None:
    """Write a model's weights into a folder that has none; what is on the host at a time is one file's worth.

    Args:
        weights: as `ModelFamily.weights` gives them, in the order of `shapes`.
        shapes: of all of them.
        dtype: of what is stored; floating-point buffers too.
        fp32: last parts of names that are stored in fp32 all the same, see `ModelFamily.fp32`.

    Raises:
        ValueError: a weight is not finite, after the cast.
        OSError: the disk is full, or the like.
    """
    stored_as = {name: torch.float32 if name.rpartition(".")[2] in fp32 else dtype for name in shapes}
    empty = {name: torch.empty(shape, dtype=stored_as[name], device="meta") for name, shape in shapes.items()}
    planned = split_state_dict_into_shards_factory(
        empty,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    waiting: dict[str, dict[str, Tensor]] = {file: {} for file in planned.filename_to_tensors}
    for name, value in weights:
        stored = value.detach().to(stored_as[name]) if value.is_floating_point() else value.detach()
        file = planned.tensor_to_filename[name]
        waiting[file][name] = _alone(finite(name, stored).cpu().contiguous())
        if len(waiting[file]) == len(planned.filename_to_tensors[file]):
            save_tensors(waiting.pop(file), folder / file)
    assert not waiting, f"weights that never came: {list(waiting)}"
    if planned.is_sharded:
        index = {"metadata": planned.metadata, "weight_map": planned.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_size(size: str, name: str) -> None:
    """Raise ValueError unless it is a size as huggingface_hub reads it."""
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", size):
        raise ValueError(f"{name}={size!r}: write a whole number and its unit, e.g. 5GB or 500MB")


def finite(name: str, value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The value; ValueError if a number in it is not finite."""
    return check_weight(name, value, "export", "such a model is not written; go back to an earlier checkpoint")


def save_tensors(tensors: dict[str, Shaped[Tensor, "..."]], path: Path) -> None:
    """A safetensors file; OSError if it cannot be written."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def _alone(value: Tensor) -> Tensor:
    """The value without the larger tensor that it may be a view of, which would stay in memory with it."""
    return value.clone() if value.untyped_storage().nbytes() != value.nbytes else value
