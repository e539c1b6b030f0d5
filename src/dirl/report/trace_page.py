"""One HTML page of trajectories: data, style and code in one file, nothing fetched, nothing in the data obeyed."""

import base64
import hashlib
import html
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from dirl.finite import dumps

CODE = ("traces.js", "chart.js", "cards.js", "viewer.js", "list.js", "keys.js")
"""In the order in which they run."""


def trace_page(data: dict[str, Any], title: str) -> str:
    """The page; `data` is of `trace_data` and may have further keys for the viewer."""
    style, code = _resource("style.css"), "".join(_resource(name) for name in CODE)
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(code)}; base-uri 'none'",
        "style": style,
        "code": code,
        "data": embedded(data | {"title": title}),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))


def embedded(data: Any) -> str:
    """JSON for an element of HTML: plain ASCII, without a character that HTML or JavaScript looks for."""
    text = dumps(data, "page", ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: Path, page: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8", newline="\n")
    part.replace(path)


def _resource(name: str) -> str:
    return files("dirl.report").joinpath("trace_viewer", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Names an inline element in a content security policy: no other style or script of the page is taken."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
