"""Learning curves and denoising pictures, read back from the figures."""

import math
import struct

import pytest
from rich.text import Text

from dirl.demo.pictures import (
    curves_figure,
    denoising_figure,
    denoising_picture,
    denoising_steps,
    denoising_text,
    learning_curves,
    running_mean,
    visible,
)

SFT = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "validation_nelbo": 1.5}]
RL = [{"step": 1, "reward": 0.4, "tokens_per_step": 1.5, "entropy": 0.3}, {"step": 2, "reward": 0.6}]

# One prompt token in the first block of 4; `\` and `[` are what markup and mathtext trip over.
ANSWER = {
    "prompt_text": "2+2",
    "tokens": ["\\", "[", "$", "4", "]", "\n", "<|im_end|>", "x", " ", "y", "z"],
    "step_map": [2, 1, 1, 1, 2, 3, 3, 1, 1, 1, 1],
    "logprobs": [math.log(p) for p in (0.95, 0.6, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)],
    "response_length": 7,
    "block_size": 4,
    "first_block_offset": 1,
}


def png_size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.axison]


def test_learning_curves_are_a_png_of_1200_by_800(tmp_path):
    path = learning_curves(tmp_path / "new" / "curves.png", SFT, RL, {"before": 0.4, "after": 0.6})
    assert png_size(path) == (1200, 800)


def test_panels_show_the_values_they_are_given():
    figure = curves_figure(SFT, RL, {"before RL": 0.4})
    loss, reward, speed, entropy = figure.axes
    assert [line.get_xydata().tolist() for line in loss.get_lines()] == [[[1, 2.0], [2, 1.0]], [[2, 1.5]]]
    assert reward.get_lines()[0].get_xydata().tolist() == [[1, 0.4], [2, 0.6]]
    assert speed.get_lines()[0].get_xydata().tolist() == [[1, 1.5]]
    assert entropy.get_lines()[0].get_xydata().tolist() == [[1, 0.3]]
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["rollouts", "before RL: 40.0 %"]


def test_panels_without_values_are_left_out():
    assert titles(curves_figure(SFT, [], {"before": 0.4})) == ["SFT loss"]
    assert titles(curves_figure([], [{"step": 1, "entropy": 0.1}], {})) == ["Entropy of the policy"]
    assert len(titles(curves_figure([], RL, {}))) == 3


def test_values_that_are_nan_are_not_drawn_and_steps_are_sorted():
    rows = [{"step": 3, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}]
    (loss,) = curves_figure(rows, [], {}).axes
    assert loss.get_lines()[0].get_xydata().tolist() == [[1, 3.0], [3, 1.0]]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no learning curves to draw"):
        curves_figure([{"step": 1, "speed": 2.0}], [], {})


def test_running_mean_is_centred_and_shorter_at_the_ends():
    assert running_mean([0.0, 3.0, 6.0, 0.0], window=3) == [1.5, 3.0, 3.0, 3.0]


def test_steps_are_the_forwards_in_order_and_know_what_they_committed():
    steps, committed_by = denoising_steps(ANSWER["step_map"], block_size=4, first_block_offset=1)
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 1)]
    assert committed_by == [1, 0, 0, 2, 3, 4, 4, 5, 5, 5, 5]


def test_a_prompt_of_whole_blocks_leaves_whole_blocks():
    assert denoising_steps([1, 1, 2, 2], block_size=2, first_block_offset=0) == ([(0, 1), (1, 1), (1, 2)], [0, 0, 2, 2])


def test_an_offset_of_a_whole_block_is_refused():
    with pytest.raises(ValueError, match=r"first_block_offset=4 is not within 0\.\.3"):
        denoising_steps([1], block_size=4, first_block_offset=4)


def test_terminal_text_shows_each_step():
    assert denoising_text(**ANSWER, markup=False).splitlines() == [
        "2+2",
        "1.1 ·[$ ···· ····",
        "1.2 \\[$ ···· ····",
        "2.1 \\[$ 4··· ····",
        "2.2 \\[$ 4]·· ····",
        "2.3 \\[$ 4]↵⊣ ····",
        "3.1 \\[$ 4]↵⊣ x␣yz",
    ]


def test_markup_adds_colour_and_changes_no_character():
    text = Text.from_markup(denoising_text(**ANSWER))
    assert text.plain == denoising_text(**ANSWER, markup=False)
    first_step, second_step = text.split("\n")[1:3]
    styles = {
        line.plain[span.start : span.end]: span.style for line in (first_step, second_step) for span in line.spans
    }
    assert styles["["] == "bold yellow" and styles["$"] == "bold red" and styles["\\"] == "bold green"
    stop, tail = text.split("\n")[5], text.split("\n")[6]
    assert [stop.plain[span.start : span.end] for span in stop.spans if span.style == "bold green"] == ["↵⊣"]
    assert tail.spans[-1].style == "dim" and tail.plain[tail.spans[-1].start :] == " x␣yz"


def test_picture_has_a_cell_for_each_step_and_position():
    axes = denoising_figure(**ANSWER).axes[0]
    count, rows = 11, 6
    committed_by = [1, 0, 0, 2, 3, 4, 4, 5, 5, 5, 5]
    shown = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    expected = {(row, i): visible(t) for i, t in enumerate(ANSWER["tokens"]) for row in range(committed_by[i], rows)}
    assert shown == expected
    squares = {(int(p.get_y()), int(p.get_x())) for p in axes.patches}
    everything = {(row, i) for row in range(rows) for i in range(count)}
    assert squares == (everything - set(expected)) | {(row, i) for i, row in enumerate(committed_by)}


def test_uncertain_tokens_are_redder_and_the_tail_is_dimmed():
    axes = denoising_figure(**ANSWER).axes[0]
    colour = {(int(p.get_y()), int(p.get_x())): p.get_facecolor() for p in axes.patches}
    sure, unsure, tail = colour[1, 0], colour[0, 2], colour[5, 8]
    assert unsure[0] > sure[0] and unsure[2] < sure[2]
    assert sure[3] == 1.0 and tail[3] < 1.0


def test_picture_of_forty_tokens_in_twenty_five_steps_is_legible(tmp_path):
    """Cells of at least 35 pixels for text of 10 points at 130 dots per inch."""
    step_map = [1, 2, 3, 4] * 5 + [1, 1, 1, 1] * 5
    path = denoising_picture(tmp_path / "new" / "answer.png", "q", ["8"] * 40, step_map, [-0.1] * 40, 38, 4, 0)
    width, height = png_size(path)
    assert width > 35 * 40 and height > 35 * 25


@pytest.mark.parametrize(
    ("token", "shown"),
    [("a", "a"), (" the", "␣the"), ("\n\n", "↵↵"), ("<|im_end|>", "⊣"), ("<", "<"), ("internationally", "interna…")],
)
def test_tokens_are_shown_in_few_printable_characters(token, shown):
    assert visible(token) == shown
