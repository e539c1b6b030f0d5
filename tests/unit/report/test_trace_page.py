"""The page as a file: alone, and deaf to what stands in its data."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from tests.unit.report.traced import HOSTILE, hostile_rows, page_of, row

from dirl.report.page import embedded, resource, write_page
from dirl.report.run_page import CODE as RUN_CODE
from dirl.report.trace_page import CODE


class Elements(HTMLParser):
    """Of a page: each script and style with its attributes and text, and every attribute of everything."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.inline: list[tuple[str, dict, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.title = self.last = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.last = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("script", "style"):
            self.inline.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.last = ""

    def handle_data(self, data: str) -> None:
        if self.last in ("script", "style"):
            tag, attrs, text = self.inline[-1]
            self.inline[-1] = (tag, attrs, text + data)
        elif self.last == "title":
            self.title += data


def test_what_is_in_the_data_is_no_part_of_the_page() -> None:
    page = page_of(hostile_rows(), "<b>na&sty.jsonl")
    found = Elements(page)
    assert [tag for tag, _, _ in found.inline] == ["style", "script", "script"]
    assert found.title == "<b>na&sty.jsonl · trajectories"
    data = json.loads(found.inline[1][2])
    assert [data["texts"][k] for k in data["response_ids"][0]] == list(HOSTILE), "and it is all there"
    assert data["title"] == "<b>na&sty.jsonl" and "__proto__" in data["rewards"]
    assert page.count("owned") == 3, "two tokens and a question, in the data alone"
    assert {name for _, name, _ in found.attributes if name.startswith("on")} == set()


def test_embedded_data_are_ascii_without_a_character_of_markup() -> None:
    text = embedded({text: text for text in (*HOSTILE, "\u0085", "é😀", "\ud800")})
    assert text.isascii() and not set(text) & set("<>&")
    assert json.loads(text) == {text: text for text in (*HOSTILE, "\u0085", "é😀", "\ud800")}


def test_the_policy_takes_the_pages_own_style_and_code_alone() -> None:
    found = Elements(page_of([row()]))
    (policy,) = [value for tag, name, value in found.attributes if tag == "meta" and value.startswith("default-src")]
    style, code = found.inline[0][2], found.inline[2][2]
    for kind, text in {"style-src": style, "script-src": code}.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_nothing_is_fetched() -> None:
    found = Elements(page_of([row()]))
    assert [(tag, name) for tag, name, _ in found.attributes if name in ("src", "href", "action", "style")] == []
    svg = "http://www.w3.org/2000/svg"  # the name of a vocabulary, at which nobody looks
    assert re.findall(r"https?://[^\"']+|url\(|@import|fetch\(|XMLHttp", page_of([row()])) == [svg]


def test_code_makes_no_markup_of_texts() -> None:
    pages = {"shared": ("text.js",), "trace_viewer": CODE, "run_viewer": RUN_CODE}
    for folder, name in ((folder, name) for folder, names in pages.items() for name in names):
        text = resource(folder, name)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
        assert "</script" not in text and "{{" not in text.replace("${{", "")


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, page_of([row()]))
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert list(tmp_path.iterdir()) == [path]
