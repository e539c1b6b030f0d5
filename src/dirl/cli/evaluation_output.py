"""What an evaluation prints and writes: metrics, tables, pairs, and the figure of a sweep."""

import csv
import io
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dirl.evaluation.formats import PAIR_COLUMNS, pair_cells
from dirl.evaluation.report import print_metrics
from dirl.evaluation.results import Result, results_file
from dirl.evaluation.results_folder import RESULTS, ResultsFolder, write_whole
from dirl.evaluation.sweep import DYNAMIC, Curve, Sweep, curve
from dirl.evaluation.tables import SHOWN, Comparison, Row, compare, pairs
from dirl.report.tradeoff import Mark, tradeoff_figure

LISTED = 5
"""Responses that could not be judged which are named in the terminal; all of them stand in the results."""


def write_results(folder: ResultsFolder, results: Sequence[Result], sweep: Sweep) -> None:
    """The file of results, the metrics alone, and what a sweep comes to."""
    folder.write("metrics.json", {result.name: result.metrics for result in results})
    folder.write(RESULTS, results_file(list(results)))
    if sweep:
        write_sweep(folder, curves(results, sweep), "threshold" if sweep.thresholds else "block size")


def print_progress(result: Result) -> None:
    found = {name: result.metrics.get(name) for name in ("accuracy", "tokens_per_step")}
    told = ", ".join(f"{SHOWN[name]} {value:.4g}" for name, value in found.items() if value is not None)
    print(f"{result.name}: {told} ({result.problems} problems x {result.count})", flush=True)


def print_results(results: Sequence[Result], sweep: Sweep, named: bool, resamples: int, seed: int) -> None:
    """A table of metrics of one model on one task, or models and tasks side by side."""
    names = [result.model for result in results]
    if not named:
        print_metrics({result.decoding: result.metrics for result in results})
    else:
        console = Console()
        print_comparison(console, compare(results, names))
        if found := pairs(results, names, resamples, seed):
            table = Table(*PAIR_COLUMNS, title="the same problems, paired")
            for row in pair_cells(found):
                table.add_row(*row)
            console.print(table)
    for result in results:
        for note in result.notes:
            print(f"{result.name}: {note}")
        print_unjudged(result)
    for one in curves(results, sweep):
        print(
            f"{one.label}: area under accuracy against tokens per step {one.area:.4g}, its mean {one.mean_accuracy:.4g}"
        )


def print_comparison(console: Console, table: Comparison) -> None:
    """A line for each model, decoding and task, for terminals are narrow; what all lines share stands above them."""
    lines = [
        ((row.model, row.decoding, title_of(row, group)), {m: table.estimate(row, group, m) for m in SHOWN})
        for row in table.rows
        for group in table.groups
    ]
    lines = [(names, found) for names, found in lines if any(found.values())]
    varied = [place for place in range(3) if len({names[place] for names, _ in lines}) > 1]
    shared = [name for place, name in enumerate(lines[0][0]) if place not in varied]
    shown = Table(title=", ".join(shared) or None)
    for place in varied:
        shown.add_column(("model", "decoding", "task")[place], overflow="fold")
    for name in SHOWN.values():
        shown.add_column(name, justify="right", no_wrap=True)
    for names, found in lines:
        texts = ["" if one is None else one.text(metric) for metric, one in found.items()]
        shown.add_row(*(names[place] for place in varied), *texts)
    console.print(shown)


def title_of(row: Row, group: str) -> str:
    return f"{group} (avg@{row.results[group].count})" if group in row.results else group


def print_unjudged(result: Result) -> None:
    """Print which responses count as wrong because they could not be judged, and why."""
    if not result.unjudged:
        return
    print(f"{result.name}: {len(result.unjudged)} responses could not be judged and count as wrong:")
    for row in result.unjudged[:LISTED]:
        print(f"  prompt {row['prompt_id']} sample {row['sample_index']}: {row['judgement']}: {row['why']}")
    if len(result.unjudged) > LISTED:
        print(f"  and {len(result.unjudged) - LISTED} more, see {RESULTS}")


def curves(results: Sequence[Result], sweep: Sweep) -> list[Curve]:
    """One for each model, task and decoding that was swept: over its thresholds or, without any, over block sizes."""
    found: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    for result in results:
        base, at, _ = result.decoding.rpartition("@")
        if sweep.thresholds and at and result.decoding_params.strategy == DYNAMIC:
            label = f"{result.model}, {result.task}, {base}"
            found.setdefault(label, []).append((result.decoding_params.threshold, result.metrics))
        elif sweep.block_sizes and not sweep.thresholds:
            label = f"{result.model.rpartition('@b')[0]}, {result.task}, {result.decoding}"
            found.setdefault(label, []).append((result.block_size, result.metrics))
    return [curve(label, metrics) for label, metrics in found.items()]


def write_sweep(folder: ResultsFolder, found: Sequence[Curve], setting: str) -> None:
    """Write sweep.json, sweep.csv and sweep.png."""
    ends = [(one.points[0].tokens_per_step, one.points[-1].tokens_per_step) for one in found]
    slowest, fastest = min(low for low, _ in ends), max(high for _, high in ends)
    rows = [
        {
            "label": one.label,
            "area": one.area,
            "mean_accuracy": one.mean_accuracy,
            "area_over_all_speeds": one.area_between(slowest, fastest),
            "points": [vars(point) for point in one.points],
        }
        for one in found
    ]
    folder.write("sweep.json", {"setting": setting, "slowest": slowest, "fastest": fastest, "curves": rows})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["curve", setting, "tokens_per_step", "accuracy", "low", "high"])
    for one in found:
        for point in one.points:
            values = [point.setting, point.tokens_per_step, point.accuracy, point.low, point.high]
            writer.writerow([one.label, *("" if value is None else repr(value) for value in values)])
    write_whole(folder.path / "sweep.csv", out.getvalue())
    marks = {
        f"{one.label} (mean {100 * one.mean_accuracy:.1f} %)": [
            Mark(f"{p.setting:g}", p.tokens_per_step, p.accuracy, p.low, p.high) for p in one.points
        ]
        for one in found
    }
    tradeoff_figure(folder.path / "sweep.png", marks, f"Accuracy against speed, by {setting}")
