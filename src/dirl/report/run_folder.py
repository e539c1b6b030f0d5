"""All that the folder of a run tells, however often it was started: config, metrics by step, evaluations, times."""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dirl.report.secrets import without_secrets
from dirl.report.wall_times import Clock, clock_of

Series = tuple[list[int], list[float]]
"""Steps in order, and a value at each."""


@dataclass(frozen=True)
class Run:
    """A training run, however many times it was started."""

    root: Path
    folders: tuple[Path, ...]
    """`version_N` of its starts, in order."""
    earlier: tuple[Path, ...]
    """Those of runs that were started anew in the same place before, which are left out."""
    config: Mapping[str, str]
    """The config of the last start, by dotted name, without secrets."""
    series: Mapping[str, Series]
    """The values of each column of metrics.csv."""
    not_finite: Mapping[str, int]
    """Values of a column that were no finite numbers, and are not in its series."""
    clock: Clock
    evaluations: tuple[Mapping[str, float], ...]
    """Each with its `step`, in order."""

    @property
    def learns_by(self) -> str:
        """The stage that the run is, `RL` or `SFT`."""
        made_rollouts = any(name.startswith("rollout/") for name in self.series)
        return "RL" if made_rollouts or self.config.get("model.class_path", "").endswith("RLModule") else "SFT"

    def last(self, name: str) -> float | None:
        return self.series[name][1][-1] if name in self.series else None


def read_run(root: Path) -> Run:
    """The run whose folder (`trainer.default_root_dir`), or one of whose `version_N`, this is.

    Raises:
        ValueError: it is no such folder, or a file of it is damaged.
    """
    folders = version_folders(root)
    configs = [_config(folder) for folder in folders]
    resumed = [config.get("ckpt_path") not in (None, "null") for config in configs]
    first = max((k for k, again in enumerate(resumed) if not again), default=0)
    own = folders[first:]
    values: dict[str, dict[int, float]] = defaultdict(dict)
    not_finite: dict[str, int] = defaultdict(int)
    for folder in own:
        _take_metrics(folder / "metrics.csv", values, not_finite)
    series = {name: (sorted(found), [found[step] for step in sorted(found)]) for name, found in values.items()}
    evaluations = _evaluations(own)
    return Run(
        root, tuple(own), tuple(folders[:first]), configs[-1], series, dict(not_finite), clock_of(own), evaluations
    )


def version_folders(root: Path) -> list[Path]:
    """The folders of starts that have metrics, by their number."""
    if (root / "metrics.csv").is_file():
        return [root]
    found = [path.parent for path in root.glob("logs/version_*/metrics.csv")]
    numbers = {path: int(number[1]) for path in found if (number := re.fullmatch(r"version_(\d+)", path.name))}
    if numbers:
        return sorted(numbers, key=lambda path: numbers[path])
    if not root.is_dir():
        raise ValueError(f"run={str(root)!r}: no such folder; name the trainer.default_root_dir of a run")
    inside = sorted({path.parents[2].name for path in root.glob("*/logs/version_*/metrics.csv")})
    remedy = f"it holds runs in {', '.join(inside)}: name these" if inside else "name its trainer.default_root_dir"
    raise ValueError(f"run={str(root)!r}: no logs/version_*/metrics.csv in it, so this is no run; {remedy}")


def _config(folder: Path) -> dict[str, str]:
    """Flat, by dotted names; {} where there is none, as beside a logger of the user's own."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no YAML: {error}; remove it, and the report goes without") from error
    found: dict[str, str] = {}
    _flatten(tree, "", found)
    return {name: without_secrets(name, value) for name, value in found.items()}


def _flatten(value: Any, name: str, found: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _flatten(item, f"{name}.{key}" if name else str(key), found)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f"{name}[{index}]", found)
    elif name:
        found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _take_metrics(path: Path, values: dict[str, dict[int, float]], not_finite: dict[str, int]) -> None:
    """Later rows replace the values of the same step: a resumed run repeats what the one before had not saved."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        if "step" not in names:
            raise ValueError(f"{path}: has no column `step`; name the folder of a run that `fit` has written")
        for row in rows:
            if len(row) == len(names):  # a run that was killed while it wrote leaves half a row
                cells = {name: cell for name, cell in zip(names, row, strict=True) if cell}
                _take_row(cells, f"{path}:{rows.line_num}", values, not_finite)


def _take_row(
    cells: dict[str, str], where: str, values: dict[str, dict[int, float]], not_finite: dict[str, int]
) -> None:
    name = "step"
    try:
        step = int(float(cells.pop(name, "")))
        for name, cell in cells.items():
            value = float(cell)
            if math.isfinite(value):
                values[name][step] = value
            else:
                not_finite[name] += 1
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {name}: {error}; mend the row, or remove it") from error


def _evaluations(folders: list[Path]) -> tuple[dict[str, float], ...]:
    by_step: dict[float, dict[str, float]] = {}
    for path in (folder / "evaluation.json" for folder in folders):
        if not path.is_file():
            continue
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            by_step |= {float(row["step"]): {name: float(value) for name, value in row.items()} for row in rows}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: no list of evaluations ({error}); remove it, and the report goes without"
            ) from error
    return tuple(by_step[step] for step in sorted(by_step))
