"""A command in a process of its own, within a time limit; what it printed and measured until then is kept."""

import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.record import ROW

ROOT = Path(__file__).parents[1]
LAST_LINES = 12
GRACE = 5.0
"""Seconds between the request to end and the end."""


@dataclass(frozen=True)
class Outcome:
    """Of one command.

    Args:
        status: `ok`, `failed` (it ended by itself with an error) or `stopped` (at its time limit).
        seconds: that it took, imports included.
        rows: what it measured, also where it did not come to its end.
        last_lines: of what it printed.
    """

    status: str
    seconds: float
    rows: list[dict[str, Any]]
    last_lines: list[str]

    @property
    def cause(self) -> str:
        """The last line that says something."""
        said = [line for line in self.last_lines if line.strip()]
        return said[-1].strip(" =") if said else "it printed nothing"


def run_isolated(
    command: Sequence[str], limit: float, folder: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Outcome:
    """Run `python COMMAND` with OUT=folder, where its output is kept as output.txt; results from before are removed.

    Args:
        settings: environment variables, beside those of this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    started, printed = time.monotonic(), folder / "output.txt"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=ROOT,
            env={**_environment(folder), **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "failed" if process.wait(limit) else "ok"
        except subprocess.TimeoutExpired:
            status = "stopped"
        finally:
            _end_group(process)
    lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()
    last = [line[:500] for line in lines if ROW not in line][-LAST_LINES:]
    return Outcome(status, time.monotonic() - started, _rows(folder, lines), last)


def _environment(folder: Path) -> dict[str, str]:
    """Nothing is looked for in a network; the package is found where it has not been installed, too."""
    links = [] if importlib.util.find_spec("dirl.callbacks") else [_linked().name]
    path = os.pathsep.join([*links, *filter(None, (os.environ.get("PYTHONPATH"), str(ROOT / "src")))])
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    memory = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    lmdeploy = {"LMDEPLOY_ENABLE_CHECK_ENV": "0"}  # it asks for versions of packages that its engine does not use
    return memory | lmdeploy | {**os.environ, **offline, "PYTHONPATH": path, "OUT": str(folder)}


@functools.cache
def _linked() -> tempfile.TemporaryDirectory:
    """The package as its installation lays it out, of links into this tree; as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="dirl-")
    package = Path(folder.name) / "dirl"
    package.mkdir()
    for source in (*(ROOT / "src" / "dirl").iterdir(), ROOT / "callbacks", ROOT / "configs"):
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    return folder


def _end_group(process: subprocess.Popen) -> None:
    """The process and what it started and left: the next part finds the device's memory free."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    end = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:  # what was killed takes a moment to go
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def _rows(folder: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    """Those of its files; where it wrote none, those that it printed as it went."""
    paths = sorted(folder.glob("*.json"))
    files = [json.loads(path.read_text(encoding="utf-8"), parse_constant=str) for path in paths]
    written = [row for file in files for row in file.get("rows", [])]
    return written or [row for line in lines if (row := _row(line))]


def _row(line: str) -> dict[str, Any] | None:
    """What a line holds, behind what pytest may have put before it; the last one may have been cut."""
    text = line.partition(ROW)[2]
    return json.loads(text, parse_constant=str) if text.endswith("}") else None
