"""Samples in words: in a terminal nothing of them is obeyed, as Markdown nothing of them is markup."""

from typing import Any

import pytest
from rich.console import Console

from dirl.report.sample_texts import as_markdown, for_terminal
from dirl.report.terminal_text import printable, shortened


def sample(**more: Any) -> dict[str, Any]:
    fields = {
        "epoch": 20,
        "step": 20,
        "prompt_id": "17",
        "question": "12+34",
        "response": "so 46",
        "ground_truth": "46",
    }
    fields |= {"reward": 0.75, "rewards": {"exact": 1.0, "length": -0.25}, "correct": True, "response_length": 9}
    return {**fields, "finish_reason": "stop", **more}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb é 😀", "a\nb é 😀"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\tb\rc", "a    b\\rc"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, seen: str) -> None:
    assert printable(text) == seen


def test_a_sample_off_a_terminal_is_plain_text() -> None:
    text = for_terminal([sample(), sample(correct=False, ground_truth=None)], 800, Console(width=60))
    assert text == "\n".join(
        [
            "--------------- samples of epoch 20, step 20 ---------------",
            "✓ correct reward 0.75 (exact 1, length -0.25), 9 tokens, prompt 17",
            "  asked   12+34",
            "  answer  so 46",
            "  truth   46",
            "✗ wrong reward 0.75 (exact 1, length -0.25), 9 tokens, prompt 17",
            "  asked   12+34",
            "  answer  so 46",
        ]
    )


def test_on_a_terminal_it_has_colours_and_no_markup_of_its_own() -> None:
    console = Console(width=60, force_terminal=True, color_system="standard")
    text = for_terminal([sample(response="[red]x[/red]\x1b[2J\nsecond line of it")], 800, console)
    assert "\x1b[32m✓ correct\x1b[0m" in text
    assert "[red]x[/red]\\x1b[2J\n          second line of it" in text and "\x1b[2J" not in text


def test_long_texts_are_cut_in_the_terminal_alone() -> None:
    row = sample(response="x" * 50)
    assert "xxxxx … (45 characters more)" in for_terminal([row], 5, Console(width=60))
    assert "x" * 50 in as_markdown([row])
    assert shortened("abc", 3) == "abc"


def test_markdown_takes_texts_as_code() -> None:
    text = as_markdown([sample(response="# no heading\n```\n<b>", rewards={"a`b``c": 1.0}, correct=None)])
    assert "answer:\n\n    # no heading\n    ```\n    <b>" in text
    assert "``` reward 0.75 (a`b``c 1), 9 tokens, prompt 17 ```" in text
