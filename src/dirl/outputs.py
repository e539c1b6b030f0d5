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


def check_folder_name(value: str | None, name: str) -> None:
    """ValueError for what stands where a folder is to be named and was meant as a switch."""
    if value is not None and value.strip().lower() in ("", "true", "false", "yes", "no"):
        raise ValueError(f"{name}={value!r}: name a folder, e.g. trajectories, or write null for none")


def check_new_file(path: Path, name: str, overwrite: bool) -> None:
    """ValueError if the file exists and `overwrite` is not set, or is a folder; the folder that it goes to is made."""
    if path.is_dir():
        raise ValueError(f"{name}={str(path)!r} is a folder: name a file")
    _check_free(path.exists(), path, name, overwrite)
    check_writable(path.parent, name)


def check_new_folder(path: Path, name: str, overwrite: bool) -> None:
    """Raise ValueError if the folder holds anything and `overwrite` is not set, or is a file; it is made."""
    if path.is_file():
        raise ValueError(f"{name}={str(path)!r} is a file: name a folder")
    _check_free(path.is_dir() and any(path.iterdir()), path, name, overwrite)
    check_writable(path, name)


def _check_free(taken: bool, path: Path, name: str, overwrite: bool) -> None:
    if taken and not overwrite:
        raise ValueError(f"{name}={str(path)!r} exists already: name another place, or add --overwrite=true")
