"""Results: a table for the reader, JSON with commit, hardware, versions and settings for whoever compares later."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dirl.finite import dumps

ROW = "row: "
"""Begins a line that holds a row as JSON, printed as soon as it is measured."""

PACKAGES = ("torch", "transformers", "lightning", "numpy", "triton", "lmdeploy")


def save(name: str, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Path:
    """Write NAME.json to the folder of the environment variable OUT, else to benchmarks/results."""
    folder = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {"name": name, "settings": settings, "environment": environment(), "rows": list(rows)}
    path.write_text(dumps(record, str(path), indent=1) + "\n", encoding="utf-8")
    return path


def keep(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Append a row, and print it: it is not lost when the process is ended before it writes its results."""
    rows.append(row)
    print(ROW + json.dumps(row), flush=True)


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "", left: Sequence[str] = ()
) -> None:
    """Print a table; floats get three significant digits, large numbers separators.

    Args:
        left: columns of text, which begin at one place; the first one always does.
    """
    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column in left else "right")
    for row in rows:
        table.add_row(*map(_cell, row))
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(table)


def environment() -> dict[str, Any]:
    """Where and with what a measurement was made."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": gpu and {"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)},
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _commit() -> str:
    """With `-modified` behind it where the working tree differs; `unknown` outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty=-modified", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return "unknown"
    return run.stdout.strip() if run.returncode == 0 else "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if (info.exists())
        else []
    )
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
