"""Lightning's checkpoint files, written whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol

from dirl.checkpoints.files import clear_leftovers, part_of, put_in_place, said_if_it_fails


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files; it writes through a buffer of their whole size in memory, and does not flush."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or not _is_local_file_protocol(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        part = part_of(path)
        with said_if_it_fails(path, part), part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(part, path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """What is killed in here leaves no half folder under a name that is read."""
        if not _is_local_file_protocol(path):
            return super().remove_checkpoint(path)
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            part = part_of(path)
            path.rename(part)
            shutil.rmtree(part)
        else:
            path.unlink(missing_ok=True)
