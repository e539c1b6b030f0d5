"""Metrics as a table: one row a metric, one column a setting."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def print_metrics(metrics: Mapping[str, Mapping[str, float]], title: str | None = None) -> None:
    """Print {setting: {metric: value}} to the terminal."""
    table = Table(title=title)
    table.add_column("metric", no_wrap=True)
    for name in metrics:
        table.add_column(name, justify="right")
    names = (metric for values in metrics.values() for metric in values if not metric.endswith(("/low", "/high")))
    rows = dict.fromkeys(names)
    for metric in rows:
        cells = [_cell(values, metric) for values in metrics.values()]
        table.add_row(metric, *cells)
    Console().print(table)


def _cell(values: Mapping[str, float], metric: str) -> str:
    """The value, with its interval where it has one."""
    if metric not in values:
        return ""
    low, high = values.get(f"{metric}/low"), values.get(f"{metric}/high")
    interval = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
    return f"{values[metric]:.4g}{interval}"
