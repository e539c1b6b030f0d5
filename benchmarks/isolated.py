"""A command in a process of its own, within a time limit; what it printed and measured until then is kept."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
        return said[-1].strip() if said else "it printed nothing"


def run_isolated(command: Sequence[str], limit: float, folder: Path) -> Outcome:
    """Run `python COMMAND` with OUT=folder, where its output is kept as output.txt; results from before are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    started, printed = time.monotonic(), folder / "output.txt"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=ROOT,
            env=_environment(folder),
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
    last = [line[:500] for line in lines if not line.startswith(ROW)][-LAST_LINES:]
    return Outcome(status, time.monotonic() - started, _rows(folder, lines), last)


def _environment(folder: Path) -> dict[str, str]:
    """Nothing is looked for in a network; the package is found where it has not been installed, too."""
    path = os.pathsep.join([p for p in (os.environ.get("PYTHONPATH"), str(ROOT / "src")) if p])
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    memory = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return memory | {**os.environ, **offline, "PYTHONPATH": path, "OUT": str(folder)}


def _end_group(process: subprocess.Popen) -> None:
    """The process and what it started and left: the next part finds the device's memory free."""
    for way, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _rows(folder: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    """Those of its files; where it wrote none, those that it printed as it went."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    written = [row for file in files for row in file.get("rows", [])]
    return written or [json.loads(line.removeprefix(ROW), parse_constant=str) for line in lines if _is_row(line)]


def _is_row(line: str) -> bool:
    """Whether a line is a whole row: the last one may have been cut."""
    return line.startswith(ROW) and line.endswith("}")
