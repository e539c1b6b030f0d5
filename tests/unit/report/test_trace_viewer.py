"""The code of the page that needs no page, run by node: steps, texts, filters, colours, axes."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.report.traced import row

from dirl.report.trace import denoising_steps
from dirl.report.trace_data import Row, told_texts, trace_data

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
FOLDER = files("dirl.report")
FILES = ("shared/text.js", "trace_viewer/traces.js", "trace_viewer/chart.js")


def js(expressions: Sequence[str], rows: Sequence[Row] = ()) -> list[Any]:
    """Values of JavaScript expressions, in which `t` are the functions, and `x` the opened trajectories."""
    data = trace_data(rows, 4, told_texts(rows)) if rows else None
    opened = f"const x = t.openTraces({json.dumps(data)});" if rows else ""
    modules = ", ".join(f"...require({json.dumps(str(FOLDER.joinpath(name)))})" for name in FILES)
    code = f"const t = {{{modules}}}; {opened} console.log(JSON.stringify([{', '.join(expressions)}]))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("steps", "offset"), [([2, 1, 2, 4, 1, 3, 2], 1), ([1, 1, 1, 1], 0), ([1], 3)])
def test_steps_are_counted_as_in_the_picture_of_one_answer(steps: list[int], offset: int) -> None:
    forwards, committed_by = denoising_steps(steps, 4, offset)
    (found,) = js([f"t.forwardsOf({steps}, 4, {offset})"])
    assert [(f["block"], f["step"]) for f in found["list"]] == forwards
    assert found["of"] == committed_by


def test_bytes_of_a_character_are_read_together_and_the_stop_token_is_part_of_the_text() -> None:
    text, starts = js(["x.text(0)", "t.textStarts(x.data, x.data.response_ids[0])"], [row()])
    assert text == "café\n<|im_end|>"
    assert starts == [0, 3, 3, 4, 5, 15]


@pytest.mark.parametrize(
    ("words", "positions"), [("é", [1, 2]), ("CAFÉ", [0, 1, 2]), ("f", [0]), ("\n<|", [3, 4]), (" x", []), ("", [])]
)
def test_a_search_finds_the_tokens_that_hold_it(words: str, positions: list[int]) -> None:
    (found,) = js([f"[...t.hits(x, 0, {json.dumps(words)})]"], [row()])
    assert found == positions


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain é😀", [("plain", "plain é😀")]),
        ("\n", [("newline", "↵")]),
        ("a\t\n", [("plain", "a"), ("mark", "→"), ("newline", "↵")]),
        ("  ", [("space", "  ")]),
        ("", [("mark", "∅")]),
        ("<0xE2><0x82>", [("byte", "E2"), ("byte", "82")]),
        ("\u202egnp\u2066", [("mark", "U+202E"), ("plain", "gnp"), ("mark", "U+2066")]),
        ("\u2028\u200b\ufeff\x00\x1b", [("mark", f"U+{code}") for code in ("2028", "200B", "FEFF", "0000", "001B")]),
        ("\ud800x", [("mark", "U+D800"), ("plain", "x")]),
        ("<b>&amp;", [("plain", "<b>&amp;")]),
    ],
)
def test_what_cannot_be_seen_is_shown_by_name(text: str, parts: list[tuple[str, str]]) -> None:
    (found,) = js([f"t.visibleParts({json.dumps(text)})"])
    assert [(part["kind"], part["text"]) for part in found] == parts


ROWS = [
    row("a", 1, reward=0.5, response_length=3),
    row("a", 0, reward=1.0, response_length=5),
    row("b", 0, reward=None, rewards={}, response_length=4, correct=False, finish_reason="length"),
]


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ({}, [0, 1, 2]),
        ({"rewardFrom": 0.6}, [1]),
        ({"rewardTo": 0.6}, [0]),
        ({"component": "accuracy", "rewardFrom": 1}, [0, 1]),
        ({"component": "toString", "rewardFrom": 0}, []),
        ({"lengthFrom": 4}, [1, 2]),
        ({"lengthFrom": 4, "lengthTo": 4}, [2]),
        ({"finish": "length"}, [2]),
        ({"correct": "false"}, [2]),
        ({"prompt": "B"}, [2]),
        ({"prompt": "what"}, [0, 1, 2]),
        ({"text": "CAFÉ\n"}, [1, 2]),
        ({"text": "nowhere"}, []),
        ({"order": "-reward"}, [1, 0, 2]),
        ({"order": "reward"}, [0, 1, 2]),
        ({"order": "length"}, [0, 2, 1]),
        ({"order": "-speed"}, [1, 2, 0]),
    ],
)
def test_filters_and_orders(filter: dict, found: list[int]) -> None:
    bounds = dict.fromkeys(("rewardFrom", "rewardTo", "lengthFrom", "lengthTo"))
    texts = dict.fromkeys(("text", "prompt", "component", "finish", "correct"), "")
    asked = bounds | texts | {"order": "file"} | filter
    assert js([f"t.filtered(x, {json.dumps(asked)})"], ROWS) == [found]


def test_a_group_is_of_one_prompt_and_one_version_in_order_of_its_samples() -> None:
    rows = [*ROWS, row("a", 2, policy_version=4)]
    assert js(["x.groups", "x.groupOf"], rows) == [[[1, 0], [2], [3]], [0, 0, 1, 2]]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("ramp", ["step", "confidence"])
def test_text_can_be_read_on_every_colour_and_light_tells_the_ends_apart(theme: str, ramp: str) -> None:
    places = [k / 40 for k in range(41)]
    found = js([f"t.colourAt('{theme}', '{ramp}', {place})" for place in places])
    shades = [brightness(colour["back"]) for colour in found]
    for colour, shade in zip(found, shades, strict=True):
        ink = 0.0 if colour["ink"] == "#000" else 1.0
        assert (max(ink, shade) + 0.05) / (min(ink, shade) + 0.05) >= 4.5, "WCAG AA"
    assert abs(shades[0] - shades[-1]) > 0.15, "not by hue alone"
    if ramp == "step":
        assert len({a < b for a, b in pairwise(shades)}) == 1, "ever lighter, or ever darker"


def brightness(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, by WCAG."""
    shares = [int(value) / 255 for value in colour[4:-1].split(",")]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("least", "ticks"), [(-2.3, [0, -1, -2, -3]), (0, [0, -0.02, -0.04, -0.06]), (-0.4, [0, -0.1, -0.2, -0.3, -0.4])]
)
def test_axes_have_round_numbers_down_to_the_least(least: float, ticks: list[float]) -> None:
    assert js([f"t.logprobTicks({least})"]) == [ticks]


def test_only_rows_in_view_are_drawn() -> None:
    assert js(["t.rowsInView(44000, 440, 44, 100000)", "t.rowsInView(0, 440, 44, 3)"]) == [[995, 1015], [0, 3]]


def test_numbers_are_short_and_what_is_missing_is_a_dash() -> None:
    assert js(["t.number(-0.123456)", "t.number(2)", "t.number(null)"]) == ["−0.123", "2", "–"]
