"""Training runs as the data of a page: charts, thinned curves, tables, samples, warnings, settings."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from dirl.report.page import write_page
from dirl.report.run_charts import charts
from dirl.report.run_folder import Run, Series, read_run
from dirl.report.run_page import run_page
from dirl.report.run_samples import samples_of
from dirl.report.run_warnings import warnings_of

POINTS = 1500
"""Points of a curve on the page; of a longer one, the least and the largest of each of half as many parts."""
DIGITS = 6
"""Significant ones of a value."""
TITLES = {"RL": "Reinforcement learning", "SFT": "Supervised fine-tuning"}


def write_report(roots: Sequence[Path], page: Path) -> list[Run]:
    """Write the page of the runs in these folders."""
    runs = [read_run(root) for root in roots]
    title = ", ".join(_names(roots))
    write_page(page, run_page(run_data(runs), title))
    return runs


def run_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page reads: runs by stage, each stage with its charts."""
    names = _names([run.root for run in runs])
    stages = []
    for kind in ("SFT", "RL"):
        members = [k for k, run in enumerate(runs) if run.learns_by == kind]
        if members:
            columns = {name for k in members for name in runs[k].series}
            stages.append({"kind": kind, "title": TITLES[kind], "runs": members, "charts": charts(columns)})
    return {"stages": stages, "runs": [_run(run, name) for run, name in zip(runs, names, strict=True)]}


def _names(roots: Sequence[Path]) -> list[str]:
    """Short, and different from one another: as many of the last folders as it takes."""
    paths = [root.resolve() for root in roots]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _run(run: Run, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": run.learns_by,
        "facts": facts(run),
        "config": dict(run.config),
        "series": {column: thinned(series) for column, series in run.series.items()},
        "clock": thinned(run.clock),
        "phases": phases(run),
        "memory": {name.removeprefix("memory/"): max(values) for name, (_, values) in _under(run, "memory/").items()},
        "evaluations": [{key: short(value) for key, value in row.items()} for row in run.evaluations],
        "samples": samples_of(run),
        "warnings": [asdict(warned) for warned in warnings_of(run)],
    }


def facts(run: Run) -> dict[str, str]:
    """The run in a few words: what it is, how far it came, how long it took."""
    steps = max((series[0][-1] for series in run.series.values()), default=0)
    found = {
        "folder": str(run.root),
        "starts": ", ".join(folder.name for folder in run.folders),
        "learns by": run.config.get("objective.class_path", "null") if run.learns_by == "RL" else "SFT",
        "model": run.config.get("model.init_args.source.init_args.path", "a new one"),
        "task": run.config.get("task.class_path", "null"),
        "steps": str(steps),
        "epochs": f"{run.series['epoch'][1][-1] + 1:.0f}" if "epoch" in run.series else "null",
        "seconds": f"{run.clock[1][-1]:.0f}" if run.clock[1] else "null",
        "left out": ", ".join(f"{folder.name} (another run, started anew)" for folder in run.earlier),
    }
    return {name: value for name, value in found.items() if value not in ("null", "")}


def phases(run: Run) -> list[dict[str, Any]]:
    """Mean share of an epoch's time, and mean seconds of it where they are logged, by phase."""
    rows = []
    for column, (_, shares) in _under(run, "share/").items():
        phase = column.removeprefix("share/")
        seconds = run.series.get(f"time/{phase}_s")
        rows.append(
            {
                "phase": phase,
                "share": short(fmean(shares)),
                "seconds": short(fmean(seconds[1])) if seconds else None,
                "longest": short(max(seconds[1])) if seconds else None,
            }
        )
    return sorted(rows, key=lambda row: (row["phase"] == "other", -row["share"]))


def thinned(series: Series) -> list[list[float]]:
    """Steps and values, of which a long curve keeps its extremes."""
    steps, values = series
    if len(steps) > POINTS:
        kept = []
        parts = POINTS // 2
        for k in range(parts):
            part = range(k * len(steps) // parts, (k + 1) * len(steps) // parts)
            kept += sorted({min(part, key=values.__getitem__), max(part, key=values.__getitem__)})
        kept = sorted({0, *kept, len(steps) - 1})
        steps, values = [steps[k] for k in kept], [values[k] for k in kept]
    return [list(steps), [short(value) for value in values]]


def short(value: float) -> float:
    """A number without digits that nobody reads."""
    return float(f"{value:.{DIGITS}g}")


def _under(run: Run, prefix: str) -> dict[str, Series]:
    return {name: run.series[name] for name in sorted(run.series) if name.startswith(prefix)}
