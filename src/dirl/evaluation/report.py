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
    rows = dict.fromkeys(metric for values in metrics.values() for metric in values)
    for metric in rows:
        cells = [f"{values[metric]:.4g}" if metric in values else "" for values in metrics.values()]
        table.add_row(metric, *cells)
    Console().print(table)
