"""Compressed files (.gz, .zst), unpacked once into the datasets cache."""

import hashlib
import os
import shutil
from pathlib import Path

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes and what pyarrow calls them."""


def unpacked(path: Path) -> Path:
    """The contents of a compressed file as a file of the datasets cache (`HF_DATASETS_CACHE`); another one as it is.

    Made again when path, size or time of the file have changed.

    Raises:
        ValueError: it is not what its suffix says, is cut off, or the cache cannot be written.
    """
    if path.suffix not in PACKED:
        return path
    import datasets
    import pyarrow

    state = path.stat()
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}-{path.stem}"
    target = Path(datasets.config.HF_DATASETS_CACHE) / "dirl" / "unpacked" / name
    if target.exists():
        return target
    part = target.with_name(f".{name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with pyarrow.input_stream(str(path), compression=PACKED[path.suffix]) as packed, part.open("wb") as file:
            shutil.copyfileobj(packed, file)
        part.replace(target)
    except (OSError, EOFError, pyarrow.ArrowInvalid) as error:
        part.unlink(missing_ok=True)
        raise ValueError(
            f"{path} cannot be unpacked into {target.parent}: {error}; is it whole, and is there room?"
        ) from error
    return target
