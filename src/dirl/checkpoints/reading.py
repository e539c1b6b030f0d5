"""What a checkpoint is, without loading its weights: the newest of a run, damaged ones, names and shapes."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dirl.checkpoints.files import KEY, PLACES

METADATA = "meta.pt"
"""What Lightning calls the file beside the shards that holds all but tensors."""
SHARDS = ".metadata"
"""The index of a sharded checkpoint, written when all shards are."""


class DamagedError(ValueError):
    """A checkpoint that cannot be read to its end."""


@dataclass(frozen=True)
class Contents:
    """A checkpoint but for its weights and the optimizer's state."""

    path: Path
    values: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the module's weights."""

    @property
    def own(self) -> dict[str, Any]:
        """What `Resumable` has added to the checkpoint."""
        return self.values[KEY]


def newest(root: Path, thorough: bool = True) -> Path:
    """The checkpoint of a run that was written last; damaged ones are named and passed over.

    By time and not by step: a run may have been resumed from an earlier step than it had reached.

    Raises:
        ValueError: there is none.
    """
    from lightning.pytorch.utilities import rank_zero_warn  # not above: other commands read checkpoints without it

    found = {path.resolve() for place in PLACES for path in root.glob(place) if path.exists()}
    for path in sorted(found, key=_written_at, reverse=True):
        try:
            read(path, thorough)
            return path
        except ValueError as error:
            rank_zero_warn(f"{error}; --ckpt_path last passes over it")
    places = ", ".join(str(root / place) for place in PLACES)
    what = f"none of the {len(found)} checkpoints can be resumed" if found else "there is no checkpoint"
    raise ValueError(f"ckpt_path=last: {what} (looked at {places}): start without --ckpt_path, or name a file")


def read(path: Path, thorough: bool = True) -> Contents:
    """Look into a checkpoint.

    Args:
        thorough: read it all and compare its checksums, so that loading will not fail half-way.

    Raises:
        DamagedError: it is not whole.
        ValueError: it is something else.
    """
    if not path.exists():
        raise ValueError(
            f"ckpt_path={path}: there is no such file or folder; correct the path (in `fit`, `last` is the newest)"
        )
    if path.suffix == ".safetensors" or (path / "config.json").is_file():
        folder = path if path.is_dir() else path.parent
        raise ValueError(
            f"ckpt_path={path} is a Hugging Face model and no checkpoint of a run: to start from it, set "
            f"--model.init_args.source.init_args.path={folder} and no ckpt_path"
        )
    try:
        contents = _read_folder(path, thorough) if path.is_dir() else _read_file(path, thorough)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError) as error:
        raise DamagedError(f"the checkpoint {path} is damaged ({_first_line(error)})") from error
    if KEY not in contents.values:
        raise ValueError(f"ckpt_path={path} is no checkpoint of dirl, or of an earlier version")
    if contents.own["torn"]:
        raise DamagedError(f"the checkpoint {path} was written in the middle of an optimizer step")
    return contents


def _read_file(path: Path, thorough: bool) -> Contents:
    _test_archive(path, thorough)
    values = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    weights = values.pop("state_dict", {})
    values.pop("optimizer_states", None)
    return Contents(path, values, {name: tuple(value.shape) for name, value in weights.items()})


def _read_folder(path: Path, thorough: bool) -> Contents:
    from torch.distributed.checkpoint import FileSystemReader

    if not (path / METADATA).is_file() or not (path / SHARDS).is_file():
        raise ValueError(f"ckpt_path={path} is a folder without {METADATA} and {SHARDS}: no checkpoint")
    _test_archive(path / METADATA, thorough)
    index = FileSystemReader(path).read_metadata()
    for place in index.storage_data.values():
        _test_shard(path / place.relative_path, place.offset, place.length, thorough)
    values = torch.load(path / METADATA, map_location="cpu", weights_only=True)
    named = ((name.removeprefix("state_dict."), entry) for name, entry in index.state_dict_metadata.items())
    shapes = {name: tuple(entry.size) for name, entry in named if not name.startswith("optimizer_")}
    return Contents(path, values, shapes)


def _test_archive(file: Path | io.BytesIO, thorough: bool) -> None:
    """Raise BadZipFile if it is cut off or, looked at thoroughly, if a checksum is wrong."""
    with zipfile.ZipFile(file) as archive:
        bad = archive.testzip() if thorough else None
        if bad is not None:
            raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")


def _test_shard(path: Path, offset: int, length: int, thorough: bool) -> None:
    if path.stat().st_size < offset + length:
        raise EOFError(f"{path.name} has {path.stat().st_size} bytes of {offset + length}")
    if thorough:
        with path.open("rb") as file:
            file.seek(offset)
            piece = io.BytesIO(file.read(length))
        if zipfile.is_zipfile(piece):
            _test_archive(piece, thorough)


def _written_at(path: Path) -> tuple[float, str]:
    inner = path / METADATA
    return (inner if inner.is_file() else path).stat().st_mtime, str(path)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
