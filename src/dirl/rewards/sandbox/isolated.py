"""A Python program in an isolated process, and whether this host can isolate one."""

import json
import os
import platform
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
START_LIMIT_S = 30.0
MACHINES = ("x86_64", "aarch64")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
PACKAGE = "dirl.rewards.sandbox"
_LOADER = """\
import sys, types
for name, source in {sources!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main()
"""


class SandboxError(RuntimeError):
    """The sandbox itself failed, whatever was to run in it."""


@dataclass(frozen=True)
class Limits:
    """What an isolated process may use.

    Args:
        seconds: of processor time, each process; and twice as many of the clock.
        memory_mb: address space of each process.
        processes: at a time, threads included.
        files_mb: what it may write, all files together.
        open_files: at a time, of each process.
    """

    seconds: int = 4
    memory_mb: int = 512
    processes: int = 4
    files_mb: int = 16
    open_files: int = 32

    def __post_init__(self) -> None:
        least = {"seconds": 1, "memory_mb": 64, "processes": 1, "files_mb": 1, "open_files": 16}
        for name, value in asdict(self).items():
            if value < least[name]:
                raise ValueError(f"{name}={value} of a sandbox: use at least {least[name]}")


class Isolated:
    """Starts when it is made; leaving it as a context ends the process and all that it has started.

    Args:
        modules: of this package, in the order of their imports; the last has a `main`.
        payload: JSON that the program finds on standard input.
        keep: descriptors that it has as 3, 4, ...
    """

    def __init__(self, modules: Sequence[str], payload: object, keep: Sequence[int], limits: Limits) -> None:
        sources = [(f"{PACKAGE}.{name}", (HERE / f"{name}.py").read_text(encoding="utf-8")) for name in modules]
        folders, links = readable()
        self._status, status = os.pipe()
        settings = {
            "status": status,
            "keep": list(keep),
            "argv": [interpreter(), "-s", "-P", "-S", "-B", "-c", _LOADER.format(sources=sources)],
            "readable": folders,
            "links": links,
            "parent": os.getpid(),
            "limits": asdict(limits),
        }
        with os.fdopen(os.memfd_create("payload"), "wb+") as given:
            given.write(json.dumps(payload).encode())
            given.flush()
            given.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(HERE / "bootstrap.py"), json.dumps(settings)],
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[status, *keep],
            )
        os.close(status)

    def await_ready(self) -> None:
        """Return when the program begins; SandboxError if it never does."""
        said = read_until(self._status, time.monotonic() + START_LIMIT_S)
        if said != b"ready":
            raise SandboxError(said.decode(errors="replace") or f"nothing began within {START_LIMIT_S:g} s")

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)  # the process outside ends the one inside, and the kernel the rest
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        os.close(self._status)


def read_until(descriptor: int, deadline: float, most: int = 1 << 16) -> bytes:
    """What is written to a pipe until it is closed, the deadline on the monotonic clock, or so many bytes."""
    data = b""
    while len(data) < most:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(descriptor, most - len(data)) if ready else b""
        if not part:
            break
        data += part
    return data


def interpreter() -> str:
    """The Python that a virtual environment is made of; it needs none of its packages."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def readable() -> tuple[list[str], list[tuple[str, str]]]:
    """Files and folders that Python needs, none within another, and links of the host that lead to them."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    own = [f"{prefix}/{folder}" for prefix in prefixes for folder in ("lib", "lib64")]
    wanted = [interpreter(), sysconfig.get_path("stdlib"), *own, *LIBRARIES]
    links = [(path, os.readlink(path)) for path in LIBRARIES if os.path.islink(path)]
    found = {os.path.realpath(path) for path in wanted if os.path.exists(path)}
    outer = [path for path in sorted(found) if not any(path.startswith(f"{other}/") for other in found - {path})]
    return outer, links


@cache
def why_not() -> str | None:
    """Why this host cannot isolate a process; None: it can, which was tried."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"it needs Linux on {' or '.join(MACHINES)}, and this is {sys.platform} on {platform.machine()}"
    reading, writing = os.pipe()
    try:
        try:
            with Isolated(["probe"], {}, [writing], Limits()) as probe:
                os.close(writing)
                probe.await_ready()
                said = read_until(reading, time.monotonic() + START_LIMIT_S)
        except SandboxError as error:
            return f"{error}; {remedy(str(error))}"
        problems = json.loads(said) if said else ["it ended without a word"]
        return "; ".join(problems) or None
    finally:
        os.close(reading)


def remedy(error: str) -> str:
    """What the one who runs the host can do."""
    if "clone" in error or "uid_map" in error or "setgroups" in error:
        return (
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, on "
            "Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container --security-opt seccomp=unconfined) "
            "or evaluate on another host"
        )
    return "evaluate on another host (Linux 5.12 or newer)"
