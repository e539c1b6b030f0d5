"""What a run's folder tells of it: metrics by step, and its evaluations."""

import csv
import json
from pathlib import Path


def before_and_after(root: Path) -> dict[str, dict[str, float]]:
    """Held-out metrics at the first and the last evaluation of a run, by decoding."""
    history = evaluations(root)
    results = {}
    for decoding in ("sampled", "greedy"):
        for label, row in (("before RL", history[0]), ("after RL", history[-1])):
            prefix = f"eval/{decoding}/"
            results[f"{decoding}, {label}"] = {
                k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)
            }
    return results


def evaluations(root: Path) -> list[dict[str, float]]:
    """Metrics of every evaluation, with its `step`."""
    return json.loads(newest(root, "evaluation.json").read_text(encoding="utf-8"))


def columns(root: Path, names: dict[str, str]) -> list[dict[str, float]]:
    """Rows of a run's metrics.csv with the columns of interest, renamed."""
    with newest(root, "metrics.csv").open(encoding="utf-8") as file:
        rows = [
            {new: row.get(old) for old, new in names.items()} | {"step": row["step"]} for row in csv.DictReader(file)
        ]
    return [{k: float(v) for k, v in row.items() if v not in (None, "")} for row in rows]


def newest(root: Path, name: str) -> Path:
    """The file of the latest run: folders are numbered version_0, version_1, ..."""
    return max(root.glob(f"logs/version_*/{name}"), key=lambda path: int(path.parent.name.removeprefix("version_")))
