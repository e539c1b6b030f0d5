"""A model as a Hugging Face folder: what transformers 4.57, transformers 5, LMDeploy and this package read alike."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dirl.models.families import family_of
from dirl.models.families.weights import named_tensors, weight_shapes
from dirl.models.folder import replace_folder
from dirl.models.model_files import dtype_name, model_files
from dirl.models.source import ModelDescription
from dirl.models.weight_writer import MAX_SHARD, write_weights

ExportDtype = Literal["source", "bfloat16", "float32"]


def export_model(
    folder: str | Path,
    description: ModelDescription,
    weights: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, torch.Size],
    dtype: ExportDtype = "source",
    max_shard_size: str | int = MAX_SHARD,
) -> None:
    """Write weights, config, tokenizer and code beside `folder`, then put them in its place in one step.

    Args:
        weights: as `ModelFamily.weights` gives them, in the order of `shapes`; one at a time is enough.
        shapes: of all of them.
        dtype: `source`: as the model that the description is of was stored.

    Raises:
        ValueError: a weight is not finite; what lay at `folder` is then still there, and so after any error.
    """
    stored = stored_as(description, dtype)
    files = model_files(description.config, description.tokenizer, description.carried, stored)
    fp32 = description.family.fp32
    replace_folder(Path(folder), lambda new: _write(new, files, weights, shapes, stored, max_shard_size, fp32))


def stored_as(description: ModelDescription, dtype: ExportDtype) -> torch.dtype:
    """What the weights of an export are stored as."""
    name = dtype_name(description.config.dtype or torch.float32) if dtype == "source" else dtype
    return getattr(torch, name)


def save_model(
    folder: str | Path,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state_dict: dict[str, Shaped[Tensor, "..."]] | None = None,
) -> None:
    """Write a model that is whole in this process, in the dtype of its weights.

    Args:
        state_dict: weights in place of the backbone's own.
    """
    family = family_of(backbone.config)
    own = dict(named_tensors(backbone)) if state_dict is None else state_dict
    values = {name: own[name].detach() for name, _ in named_tensors(backbone)}
    weights = (part for name, value in values.items() for part in family.split(name, value))
    stored = next(iter(values.values())).dtype
    files = model_files(backbone.config, tokenizer, dtype=stored)
    shapes = weight_shapes(family, backbone)
    replace_folder(Path(folder), lambda new: _write(new, files, weights, shapes, stored, fp32=family.fp32))


def _write(
    folder: Path,
    files: Mapping[str, bytes],
    weights: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    max_shard_size: str | int = MAX_SHARD,
    fp32: Collection[str] = (),
) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_weights(folder, weights, shapes, dtype, max_shard_size, fp32)
