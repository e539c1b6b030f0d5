"""A name for everything that decides into which tokens conversations are encoded: equal names, equal tokens."""

import datetime
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedTokenizerBase

from dirl.reading.files import SAVED, data_files
from dirl.reading.rows import JoinedRows, Rows, read_rows

LIBRARIES = ("transformers", "tokenizers", "jinja2")


def fingerprint(
    state: object, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, object], code: Sequence[ModuleType]
) -> str:
    """32 hexadecimal digits.

    Args:
        state: of the rows, see `source_state`.
        settings: the further arguments of the encoding.
        code: the modules that encode.
    """
    from datasets.fingerprint import Hasher  # not above: it takes most of a second

    decisive = {
        "rows": state,
        "settings": settings,
        "tokenizer": Hasher.hash(tokenizer),  # of vocabulary, merges, options and templates, whatever it was used for
        "code": [hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest() for module in code],
        "versions": [version(name) for name in LIBRARIES],
        "today": datetime.date.today().isoformat() if "strftime_now" in str(tokenizer.chat_template) else None,
    }
    return hashlib.sha256(json.dumps(decisive, default=repr).encode()).hexdigest()[:32]


def source_state(source: str | list[str], split: str) -> tuple[list, Callable[[], Rows]]:
    """What tells a source from any other, and how to open it.

    Of files: path, size and time, so that they need not be read; and how they are named, since split names choose the
    files of a folder and not of a list. A hub dataset is opened; `datasets` makes its
    fingerprint of repository, commit, config and split.
    """
    if files := local_files(source):
        state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return [split, source, *state], partial(read_rows, source, split)
    rows = read_rows(source, split)
    assert isinstance(rows, JoinedRows)
    return [part.table._fingerprint for part in rows.parts], lambda: rows


def local_files(source: str | list[str]) -> list[Path]:
    """Every file that any split may read; none if a path does not exist, which is then a hub name or an error."""
    files: list[Path] = []
    for path in (Path(item).expanduser() for item in ([source] if isinstance(source, str) else source)):
        files += _files_of(path) if path.is_dir() else [path]
    return files if all(path.exists() for path in files) else []


def _files_of(folder: Path) -> list[Path]:
    if any((folder / name).is_file() for name in SAVED):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return data_files(folder)
