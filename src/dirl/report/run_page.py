"""The page of one training run, or of several to compare."""

from typing import Any

from dirl.report.page import html_page

CODE = ("series.js", "plot.js", "tables.js", "samples.js", "report.js")
"""The scripts of the page, in the order in which they run."""


def run_page(data: dict[str, Any], title: str) -> str:
    """The page; `data` is of `dirl.report.run_data`."""
    return html_page("run_viewer", CODE, data, title)
