"""What runs leave beside their checkpoints: the numbers of each step, models, trajectories, and no litter."""

import csv
from pathlib import Path

from tests.integration.identity import CLOCKED

from dirl.checkpoints.files import PART
from dirl.evaluation.run import TIMED


def compare_numbers(one: Path, two: Path) -> list[str]:
    """Over all starts of each run."""
    first, second = numbers(one), numbers(two)
    lost = [key for key in first if key not in second]
    said = [f"step {step}: {name} is in no metrics.csv" for step, name in lost]
    for (step, name), values in second.items():
        if values != first.get((step, name)):
            said.append(f"step {step}: {name} was {first.get((step, name))}, is {values}")
    return said


def numbers(root: Path) -> dict[tuple[int, str], set[str]]:
    """All values that were written of a column at a step."""
    found: dict[tuple[int, str], set[str]] = {}
    for path in root.glob("logs/version_*/metrics.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name != "step" and not name.startswith(CLOCKED) and not name.endswith(TIMED):
                        found.setdefault((int(row["step"]), name), set()).add(value)
    return found


def compare_folders(one: Path, two: Path) -> list[str]:
    """Names of files that only one has, or that differ."""
    said = []
    for name in sorted(files_of(one) | files_of(two)):
        first, second = one / name, two / name
        if not first.is_file() or not second.is_file():
            said.append(f"{one.name}/{name} is in only one run")
        elif first.read_bytes() != second.read_bytes():
            said.append(f"{one.name}/{name} differs")
    return said


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def litter(root: Path) -> list[str]:
    """What a killed run was writing, and nobody has removed."""
    return [f"{path} is left over" for path in sorted(root.rglob(f".*{PART}"))]
