"""The model in a checkpoint of a run: its files beside the weights, and the weights one at a time."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from dirl.checkpoints.reading import Contents, read
from dirl.models.families.low_rank import LowRank, names_with_adapter
from dirl.models.weight_files import WeightFiles, give_back

FILES = "model_files"
"""Where, under the checkpoint's own key, the files beside the weights are: name -> content."""
LORA = "lora"
"""Where, under the same key, the settings of its adapters are; None: it has none."""
PREFIX = "model.backbone."


class CheckpointWeights(WeightFiles):
    """The tensors of a checkpoint, a file or a folder of shards, by transformers name. Needs no process group.

    Args:
        dtype: of the weights that `fill` reads; None: as stored.
    """

    def __init__(self, path: Path, dtype: torch.dtype | None = None) -> None:
        self.folder, self.dtype = path, dtype  # the names are the backbone's own: no family puts them together
        self._opened: dict[str, Tensor] | None = None

    def read(
        self, name: str, shape: torch.Size | None = None, dtype: torch.dtype | None = None
    ) -> Shaped[Tensor, "..."]:
        """One tensor; with its adapter added, where it has one."""
        value = self._find(name)
        if value is None:
            value = self._merged(name)
        return value if dtype is None or not value.is_floating_point() else value.to(dtype)

    def _merged(self, name: str) -> Tensor:
        matrix, down, up = (self._find(part) for part in names_with_adapter(name))
        lora = None if matrix is None else read(self.folder, thorough=False).own.get(LORA)
        if matrix is None or down is None or up is None or lora is None:
            raise ValueError(
                f"the checkpoint {self.folder} has no weight {name!r}; the model that it describes needs it"
            )
        return LowRank(down, up, lora["alpha"] / lora["rank"]).added_to(matrix)

    def forget(self) -> None:
        self._opened = None
        give_back()

    def _find(self, name: str) -> Tensor | None:
        if self.folder.is_dir():
            return self._from_shards(f"state_dict.{PREFIX}{name}")
        if self._opened is None:
            self._opened = torch.load(self.folder, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
        return self._opened.get(PREFIX + name)

    def _from_shards(self, key: str) -> Tensor | None:
        from torch.distributed.checkpoint import FileSystemReader, load

        reader = FileSystemReader(self.folder)
        entry = reader.read_metadata().state_dict_metadata.get(key)
        if entry is None:
            return None
        value = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on purpose
            load({key: value}, storage_reader=reader, no_dist=True)
        return value


def is_checkpoint(path: Path) -> bool:
    """Whether it is meant to be one: a file, or a folder that holds shards and no config.json."""
    if path.is_dir():
        return not (path / "config.json").is_file() and any(
            (path / name).is_file() for name in ("meta.pt", ".metadata")
        )
    return path.is_file() or path.suffix == ".ckpt"


def packed(files: Mapping[str, bytes]) -> dict[str, str]:
    """The files as a checkpoint holds them: `torch.load` refuses empty bytes where it takes no code."""
    return {name: content.decode("latin-1") for name, content in files.items()}


@contextmanager
def unpacked(contents: Contents) -> Iterator[Path]:
    """A folder, for the time of the block, with the files beside the weights: config, tokenizer, code."""
    files = contents.own.get(FILES)
    if files is None:
        raise ValueError(
            f"the checkpoint {contents.path} does not hold its model's config and tokenizer (an earlier version wrote "
            "it): resume the run, which exports at its end, or writes a checkpoint that holds them"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for file, content in files.items():
            path = (folder / file).resolve()
            if not path.is_relative_to(folder):
                raise ValueError(f"the checkpoint {contents.path} holds a file {file!r}, which is no name in a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("latin-1"))
        yield folder
