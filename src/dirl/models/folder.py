"""A folder that is written beside its place and put there whole: a crash leaves the old one or the new one."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py", "*.md", "LICENSE*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
    *("adapter_config.json", "additional_chat_templates", ".gitattributes", "__pycache__"),
)
"""What a folder may hold that a new model replaces; anything else is somebody's, and is not deleted."""


def check_replaceable(folder: Path) -> None:
    """Raise ValueError if a model cannot be written to this place, or would take something else with it."""
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the model")
    if strange := strangers(folder):
        raise ValueError(f"{folder} holds {strange[0]!r}, which is no part of a model: name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise ValueError(f"no model can be written to {folder}: {error}; name a folder that can be made") from error


def strangers(folder: Path) -> list[str]:
    """Names in a folder that are no part of a model."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in MODEL_FILES)]


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in place of what lies at `folder`.

    The new one is a hidden neighbour until then, and what a killed writer left there is removed first. An old folder
    that holds more than a model is kept under another name.
    """
    folder = Path(os.path.realpath(folder))  # a link stays a link
    partial = folder.with_name(f".{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        write(partial)
        _settle(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if not folder.exists():
        partial.rename(folder)
    elif exchange(partial, folder):
        _retire(partial, folder)
    else:
        old = folder.with_name(f".{folder.name}.old")
        folder.rename(old)
        partial.rename(folder)
        _retire(old, folder)
    _sync(folder.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, swap = -100, 2
    return rename is not None and rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap) == 0


def _retire(old: Path, folder: Path) -> None:
    if strangers(old):
        kept = folder.with_name(f"{folder.name}.replaced-{len(list(folder.parent.glob(f'{folder.name}.replaced-*')))}")
        old.rename(kept)
    else:
        shutil.rmtree(old)


def _settle(folder: Path) -> None:
    """All files have the mode that a new file has here, and are on disk."""
    usual = next(path for name in ("config.json", "adapter_config.json") if (path := folder / name).is_file())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            shutil.copymode(usual, path)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
