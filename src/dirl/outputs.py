"""Places to write to, looked at before the work that fills them."""

import tempfile
from pathlib import Path


def check_writable(folder: Path, name: str) -> None:
    """Make a folder if need be; ValueError, with the option's name, if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{name}={str(folder)!r} cannot be written: {error}; name another folder") from error


def check_new(path: Path, name: str, overwrite: bool) -> None:
    """ValueError if a file exists, or a folder with anything in it, and `overwrite` is not set.

    The folder that it goes to is made.
    """
    if path.is_dir() and path.suffix:
        raise ValueError(f"{name}={str(path)!r} is a folder: name a file")
    exists = any(path.iterdir()) if path.is_dir() else path.exists()
    if exists and not overwrite:
        raise ValueError(f"{name}={str(path)!r} exists already: name another place, or add --overwrite=true")
    check_writable(path.parent, name)
