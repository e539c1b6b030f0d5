"""One HTML page in one file: data, style and code in it, nothing fetched, nothing in the data obeyed."""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dirl.finite import dumps


def html_page(folder: str, code: Sequence[str], data: Mapping[str, Any], title: str) -> str:
    """The page of a folder beside this file: its `page.html` with style, code and data put in.

    Args:
        code: files, in the order in which they run; like the style, after what all pages share.
        data: of plain values, for the code.
    """
    style = resource("shared", "base.css") + resource(folder, "style.css")
    script = resource("shared", "text.js") + "".join(resource(folder, name) for name in code)
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'",
        "style": style,
        "code": script,
        "data": embedded({**data, "title": title}),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], resource(folder, "page.html"))


def embedded(data: Any) -> str:
    """JSON for an element of HTML: plain ASCII, without a character that HTML or JavaScript looks for."""
    text = dumps(data, "page", ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: Path, page: str) -> None:
    """Write the page, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8", newline="\n")
    part.replace(path)


def resource(folder: str, name: str) -> str:
    return files("dirl.report").joinpath(folder, name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Names an inline element in a content security policy: no other style or script of the page is taken."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
