"""The page of trajectories."""

from typing import Any

from dirl.report.page import html_page

CODE = ("traces.js", "chart.js", "cards.js", "viewer.js", "list.js", "keys.js")
"""The scripts of the page, in the order in which they run."""


def trace_page(data: dict[str, Any], title: str) -> str:
    """The page; `data` is of `trace_data` and may have further keys for the viewer."""
    return html_page("trace_viewer", CODE, data, title)
