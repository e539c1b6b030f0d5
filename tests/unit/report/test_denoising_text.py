"""One answer in the terminal, with colours and without."""

from rich.text import Text
from tests.unit.report.answers import ANSWER

from dirl.report.denoising_text import denoising_text


def test_terminal_text_shows_each_step():
    assert denoising_text(ANSWER, markup=False).splitlines() == [
        "2+2",
        "1.1 ·[$ ···· ····",
        "1.2 \\[$ ···· ····",
        "2.1 \\[$ 4··· ····",
        "2.2 \\[$ 4]·· ····",
        "2.3 \\[$ 4]↵⊣ ····",
        "3.1 \\[$ 4]↵⊣ x␣yz",
    ]


def test_markup_adds_colour_and_changes_no_character():
    text = Text.from_markup(denoising_text(ANSWER))
    assert text.plain == denoising_text(ANSWER, markup=False)
    first_step, second_step = text.split("\n")[1:3]
    styles = {
        line.plain[span.start : span.end]: span.style for line in (first_step, second_step) for span in line.spans
    }
    assert styles["["] == "bold yellow" and styles["$"] == "bold red" and styles["\\"] == "bold green"
    stop, tail = text.split("\n")[5], text.split("\n")[6]
    assert [stop.plain[span.start : span.end] for span in stop.spans if span.style == "bold green"] == ["↵⊣"]
    assert tail.spans[-1].style == "dim" and tail.plain[tail.spans[-1].start :] == " x␣yz"
