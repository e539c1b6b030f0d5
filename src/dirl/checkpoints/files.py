"""Checkpoint files and folders that are whole or not there: written beside their place, flushed to disk, renamed."""

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""Ending of what is being written or removed; nothing reads it."""
PLACES = ("*.ckpt", "checkpoints/*.ckpt", "*/*/checkpoints/*.ckpt")
"""Where checkpoints of a run lie, under `trainer.default_root_dir`: with loggers, in `logs/version_N/checkpoints`."""
KEY = "dirl"
"""What `dirl.checkpoints.resumable` adds to a checkpoint stands under it."""
ABANDONED_S = 3600.0
"""A part of another host that nobody has written to for so long is left over from a run that was killed."""


def part_of(path: Path) -> Path:
    """Where this process writes what will be `path`: hidden, beside it."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}{PART}")


def put_in_place(part: Path, path: Path) -> None:
    """Give a complete file or folder its name, in place of what has it; a whole one is there at every moment."""
    if path.is_symlink() or (part.is_dir() and path.is_file()):
        path.unlink()
    if path.is_dir():  # a folder with contents cannot be renamed over
        new = path.with_name(f"{path.stem}-new{path.suffix}")
        part.rename(new)
        path.rename(part)
        new.rename(path)
        shutil.rmtree(part)
    else:
        part.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Ask the disk for a file, or for the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def said_if_it_fails(path: Path, part: Path) -> Iterator[None]:
    """Remove the part, and say which checkpoint could not be written (a full disk is the usual reason)."""
    try:
        yield
    except BaseException as error:
        reason = _reason(path, error)  # while the part still fills the disk
        discard(part)
        if isinstance(error, OSError | RuntimeError):  # torch.save raises RuntimeError where a file cannot grow
            raise OSError(
                f"the checkpoint {path} could not be written: {reason}; the ones before it are as they were: make "
                "room, and resume with --ckpt_path last"
            ) from error
        raise


def _reason(path: Path, error: BaseException) -> str:
    free = shutil.disk_usage(path.parent).free
    full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or free < 2**20
    return f"no space left on the disk ({free} bytes)" if full else f"{type(error).__name__}: {error}"


def discard(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def clear_leftovers(folder: Path, alive: Callable[[int], bool] | None = None) -> list[Path]:
    """Remove what killed processes were writing in this folder; returns what went."""
    alive = alive or _is_alive
    gone = []
    for part in folder.glob(f".*{PART}"):
        host, _, pid = part.name.removesuffix(PART).rpartition(".")
        if not pid.isdigit():
            continue
        if host.endswith(f".{_host()}"):
            left = not alive(int(pid))
        else:
            left = time.time() - _last_written(part) > ABANDONED_S
        if left:
            discard(part)
            gone.append(part)
    return gone


def clear_run(root: Path) -> list[Path]:
    """`clear_leftovers` in all folders of a run: each of its starts writes to one of its own, and none to an older."""
    parts = (part for place in PLACES for part in root.glob(place.replace("*.ckpt", f".*{PART}")))
    folders = {part.resolve().parent for part in parts}
    return [part for folder in sorted(folders) for part in clear_leftovers(folder)]


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def _last_written(part: Path) -> float:
    try:
        return max(path.stat().st_mtime for path in (part, *part.rglob("*")))
    except FileNotFoundError:  # its writer has finished
        return time.time()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
