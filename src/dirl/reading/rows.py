"""Rows of data from local files or the hub, checked; every row knows the file and line it came from."""

import csv
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dirl.reading.files import FILE_TYPES, SAVED, data_type, files_of, shown
from dirl.reading.json_rows import JsonRows
from dirl.reading.unpacking import PACKED, unpacked

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]

OnBadRow = Literal["error", "skip"]
"""What happens to a row that is malformed, or is not what its columns should hold."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


class Rows(Protocol):
    """Rows by index; `where(i)` names the place of row i for error messages, e.g. `train.jsonl:17`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def where(self, index: int) -> str: ...


def read_rows(source: str | Path | Sequence[str | Path], split: str = "train") -> Rows:
    """Open data without holding it: JSON is indexed and read row by row, tables are memory-mapped, CSV is held.

    Args:
        source: a .json (list of objects, or one object a line), .jsonl, .csv or .parquet file, the first three also
            with .gz or .zst behind; a folder of such files, or one that `datasets` has written by `save_to_disk`; a
            list of files and folders; or a hub dataset as `owner/name` or `owner/name:config`.
        split: of a hub dataset. In a folder whose files are named by split (`train.jsonl`,
            `test-00000.parquet`) it chooses the files; a file named directly is read whatever the split.

    Raises:
        ValueError: nothing there, or no rows. A malformed row is a ValueError with file and line when it is read.
    """
    named = source if isinstance(source, str | Path) else [str(item) for item in source]
    if isinstance(named, str) and not Path(named).expanduser().exists():
        parts: list[Rows] = [_hub_rows(named, split)]
    else:
        sources = named if isinstance(named, list) else [named]
        parts = [part for item in sources for part in _local_rows(Path(item).expanduser(), split)]
    rows = JoinedRows(parts)
    if len(rows) == 0:
        raise ValueError(f"{shown(named)} holds no rows; name a source with data")
    return rows


class JoinedRows:
    """The rows of several sources, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Row:
        part, offset = self._find(index)
        return part[offset]

    def where(self, index: int) -> str:
        part, offset = self._find(index)
        return part.where(offset)

    def _find(self, index: int) -> tuple[Rows, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)


@dataclass(frozen=True)
class ListedRows:
    """Rows of a list, named by their numbers."""

    rows: Sequence[Mapping[str, Any]]
    name: str | Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self.rows[index])

    def where(self, index: int) -> str:
        return f"{self.name}, row {index + 1}"


def quoted(value: object, most: int = 80) -> str:
    """A value of the data in an error: its beginning."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


class TableRows:
    """Rows of a datasets.Dataset, which is memory-mapped."""

    def __init__(self, table: "datasets.Dataset", name: str) -> None:
        self.table = table
        self.name = name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        return self.table[index]

    def where(self, index: int) -> str:
        return f"{self.name}: row {index + 1}"


class CsvRows:
    """Rows of a .csv file with a header, every value a text; they are held."""

    def __init__(self, path: Path, name: Path) -> None:
        self.name, self.rows, self.lines = name, [], []
        csv.field_size_limit(2**31 - 1)  # a long solution is no mistake; Python's limit is 128 KiB
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            line = 2
            try:
                for row in reader:
                    self.rows.append(row)
                    self.lines.append(line)
                    line = reader.line_num + 1
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{name}:{line}: not CSV in UTF-8: {error}; mend the file") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        if None in row or None in row.values():
            raise ValueError(f"{self.where(index)}: more or fewer values than the header has columns; mend the line")
        return dict(row)

    def where(self, index: int) -> str:
        return f"{self.name}:{self.lines[index]}"


def _local_rows(path: Path, split: str) -> list[Rows]:
    if path.is_dir() and any((path / name).is_file() for name in SAVED):
        return [_saved_rows(path, split)]
    return [_file_rows(file) for file in files_of(path, split)]


def _file_rows(path: Path) -> Rows:
    kind = data_type(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    return CsvRows(unpacked(path), path) if kind == ".csv" else JsonRows(unpacked(path), path)


def _saved_rows(folder: Path, split: str) -> Rows:
    """What `datasets` wrote by `save_to_disk`: one table, or one for each split."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: not what datasets' save_to_disk writes: {error}; write it again") from error
    if isinstance(saved, datasets.Dataset):
        return TableRows(saved, str(folder))
    if split not in saved:
        raise ValueError(f"{folder} has no split {split!r}, but {', '.join(saved)}: name the folder of one")
    return TableRows(saved[split], f"{folder}[{split}]")


def _parquet_rows(path: Path) -> Rows:
    import datasets
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_metadata(path).num_rows
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file: {error}; write it again or change its suffix") from error
    if rows == 0:
        return JoinedRows([])
    return TableRows(datasets.Dataset.from_parquet(str(path)), str(path))


def _hub_rows(name: str, split: str) -> Rows:
    local = name.startswith((".", "/", "~")) or Path(name).suffix in (*FILE_TYPES, *PACKED, ".txt", ".arrow")
    if local or not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} does not exist here and is no hub name (owner/name or owner/name:config); "
            f"correct the path, which is relative to {Path.cwd()}"
        )
    import datasets

    path, _, config = name.partition(":")
    try:
        table = datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no local file or folder, and the hub did not give its split {split!r}: {error}"
        ) from error
    return TableRows(table, f"{name}[{split}]")
