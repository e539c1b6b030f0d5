"""The page of trajectories in a browser: it opens soon, shows what the file holds, and obeys nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chromium import PROGRAM, Chromium
from tests.unit.report.traced import HOSTILE, hostile_rows, many_rows, page_of, row

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
MASKED = "[...document.querySelectorAll('#cards .tok.masked')].map((e) => Number(e.dataset.position))"
FOUND = "document.getElementById('found').textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as chromium:
        yield chromium


def shown(browser: Chromium, folder: Path, rows: list, fragment: str = "") -> None:
    path = folder / "page.html"
    path.write_text(page_of(rows), encoding="utf-8")
    browser.open(path, fragment)


def test_a_thousand_trajectories_of_500_tokens_draw_only_what_is_in_view(browser: Chromium, tmp_path: Path) -> None:
    shown(browser, tmp_path, many_rows(125, 8, 500))
    assert int(browser.value("document.documentElement.dataset.openedMs")) < 10_000, "it takes 0.3 s on idle cores"
    assert browser.value(FOUND) == "1000 of 1000"
    assert browser.value("document.querySelectorAll('.row').length") < 60, "rows in view alone"
    assert browser.value("document.querySelectorAll('.tok[data-position]').length") == 512, "of one trajectory"


def test_nothing_of_the_data_is_obeyed(browser: Chromium, tmp_path: Path) -> None:
    shown(browser, tmp_path, hostile_rows())
    assert browser.value("document.title") == "made.jsonl · trajectories"
    assert browser.value("document.querySelectorAll('img, svg[onload], main script, main b').length") == 0
    texts = browser.value("[...document.querySelectorAll('.tok[data-position]')].map((e) => e.textContent)")
    assert texts[:2] == list(HOSTILE[:2]) and texts[2] == "aU+2028bU+2029" and texts[3] == "U+202Egnp.exeU+202C"
    assert browser.value("document.querySelector('.question').textContent") == "<script>document.title='owned'</script>"
    names = browser.value("[...document.querySelectorAll('.scores td:first-child')].map((e) => e.textContent)")
    assert names == ["reward", "<b>bold</b>", "__proto__", "toString", "advantage"]
    browser.value("document.body.append(Object.assign(document.createElement('script'), {text: 'owned = 1'}))")
    assert browser.value("typeof owned") == "undefined", "the policy takes no other script, whoever brings it"
    assert any("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()


def test_keys_fill_the_masks_step_by_step(browser: Chromium, tmp_path: Path) -> None:
    shown(browser, tmp_path, [row()])
    browser.press("Home")
    assert browser.value(MASKED) == [0, 1, 2, 3, 4, 5]
    at_each = []
    for _ in range(5):
        browser.press("ArrowRight")
        at_each.append(browser.value(MASKED))
    # two positions beside the prompt in block 1, steps 1 and 2, then block 2 with steps 2, 1, 3, 1
    assert at_each == [[1, 2, 3, 4, 5], [2, 3, 4, 5], [2, 4], [4], []]
    assert browser.value("document.getElementById('step-text').value").startswith("5 of 5 denoising steps: block 2")
    browser.press("ArrowLeft", shift=True)
    assert browser.value(MASKED) == [2, 3, 4, 5], "a block back"
    assert browser.value("document.querySelectorAll('.tok.new').length") == 1
    assert browser.errors == []


def test_keys_move_search_and_show_the_group(browser: Chromium, tmp_path: Path) -> None:
    rows = [row("a", 0), row("a", 1, reward=0.25, advantage=-1.0), row("b", 0, response_ids=(7, 7, 7, 7, 7, 7))]
    trajectory, words = rows[2]
    rows[2] = (trajectory, type(words)("Where?", None, None, (*("p", "?"), *["zebra"] * 6), 4))
    shown(browser, tmp_path, rows)
    chosen = "document.querySelector('.row[aria-selected=true] b').textContent"
    browser.press("n")
    assert browser.value(chosen) == "✓ a #1"
    browser.press("g")
    assert browser.value("[...document.querySelectorAll('.card h2')].map((e) => e.textContent)") == [
        "#0  ✓ correct",
        "#1  ✓ correct",
    ]
    assert browser.value("document.querySelector('.card.chosen h2').textContent").startswith("#1")
    assert "advantage−1" in browser.value("document.querySelector('.card.chosen table').textContent")
    browser.press("/")
    browser.write("ZEBRA")
    assert browser.value(FOUND) == "1 of 3" and browser.value(chosen) == "✓ b #0"
    browser.press("Escape")
    browser.press("g")
    assert browser.value("document.getElementById('text').value") == "ZEBRA", "Escape leaves the field as it is"
    assert browser.value("document.querySelectorAll('.tok.hit').length") == 5, "of the response, not of its tail"
    browser.press("/")
    browser.write(" nowhere")
    assert browser.value("document.getElementById('cards').textContent") == "No trajectory passes the filter."
    assert browser.errors == []


def test_the_theme_is_the_systems_until_one_chooses(tmp_path: Path) -> None:
    theme = "document.documentElement.dataset.theme"
    with Chromium() as browser:
        for wanted in ("dark", "light"):
            features = [{"name": "prefers-color-scheme", "value": wanted}]
            browser.call("Emulation.setEmulatedMedia", features=features)
            shown(browser, tmp_path, [row()])
            assert browser.value(theme) == wanted
        browser.press("t")
        assert browser.value(theme) == "dark"
        colour = browser.value("getComputedStyle(document.body).backgroundColor")
        assert colour == "rgb(20, 25, 31)"
        assert browser.errors == []


def test_the_address_leads_back_to_what_was_shown(browser: Chromium, tmp_path: Path) -> None:
    shown(browser, tmp_path, [row("a", 0), row("b", 0)], "t=1&colour=confidence&view=group&step=2")
    assert browser.value("document.querySelector('.row[aria-selected=true] b').textContent") == "✓ b #0"
    assert browser.value("document.querySelector('#colour [aria-pressed=true]').dataset.value") == "confidence"
    assert browser.value(MASKED) == [2, 3, 4, 5]
