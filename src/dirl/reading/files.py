"""Which files of a source are data, and of which split."""

import re
from collections.abc import Iterable
from pathlib import Path

from dirl.reading.unpacking import PACKED

TEXT_TYPES = (".json", ".jsonl", ".csv")
FILE_TYPES = (*TEXT_TYPES, ".parquet")
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside its data."""
SAVED = ("state.json", "dataset_dict.json")
"""A folder with one of these is what `save_to_disk` has written."""
_SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test|eval)(?![A-Za-z0-9])")


def data_type(path: Path) -> str | None:
    """`.jsonl` and the like, without what compresses it; None of what is no data file."""
    suffixes = path.suffixes[-2:] if path.suffix in PACKED else [path.suffix]
    kind = suffixes[0] if suffixes else ""
    known = TEXT_TYPES if path.suffix in PACKED else FILE_TYPES
    return kind if kind in known else None


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder: not what is hidden, and not what describes them."""
    return sorted(
        path for path in folder.iterdir() if data_type(path) and path.name not in NO_DATA and path.name[0] not in "._"
    )


def files_of(path: Path, split: str) -> list[Path]:
    if "[" in split:
        raise ValueError(
            f"split={split!r}: slices are for hub datasets, {path} is local; cut the file or use a plain name"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a file ({', '.join(FILE_TYPES)}) or a folder of such files")
    if path.is_dir():
        return _files_of_split(path, split)
    if data_type(path) is None:
        raise ValueError(
            f"{path}: unknown file type {path.suffix!r}; known are {', '.join(FILE_TYPES)}, and the first three with "
            + " or ".join(PACKED)
        )
    return [path]


def _files_of_split(folder: Path, split: str) -> list[Path]:
    files = data_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no file of type {', '.join(FILE_TYPES)}; found {_names(folder.iterdir())}")
    wanted = [path for path in files if re.match(re.escape(split) + r"(?![A-Za-z0-9])", path.name)]
    neutral = [path for path in files if path not in wanted and not _SPLIT_NAME.match(path.name)]
    if len(neutral) == len(files):
        return files
    if neutral or not wanted:
        raise ValueError(
            f"{folder} cannot be read as split={split!r}: its files are {_names(files)}; "
            "name all of them by split (train.jsonl, test.jsonl) or none, or list the files to read"
        )
    return wanted


def shown(source: str | Path | list[str]) -> str:
    return _names(map(Path, source)) if isinstance(source, list) else str(source)


def _names(paths: Iterable[Path]) -> str:
    names = sorted(str(path.name) for path in paths)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
