"""The picture of one answer, read back from the figure."""

from tests.unit.report.answers import ANSWER, png_size

from dirl.report.denoising import denoising_figure, denoising_picture
from dirl.report.trace import Answer, visible


def test_picture_has_a_cell_for_each_step_and_position():
    axes = denoising_figure(ANSWER).axes[0]
    count, rows = 11, 6
    committed_by = [1, 0, 0, 2, 3, 4, 4, 5, 5, 5, 5]
    shown = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    expected = {(row, i): visible(t) for i, t in enumerate(ANSWER.tokens) for row in range(committed_by[i], rows)}
    assert shown == expected
    squares = {(int(p.get_y()), int(p.get_x())) for p in axes.patches}
    everything = {(row, i) for row in range(rows) for i in range(count)}
    assert squares == (everything - set(expected)) | {(row, i) for i, row in enumerate(committed_by)}


def test_uncertain_tokens_are_redder_and_the_tail_is_dimmed():
    axes = denoising_figure(ANSWER).axes[0]
    colour = {(int(p.get_y()), int(p.get_x())): p.get_facecolor() for p in axes.patches}
    sure, unsure, tail = colour[1, 0], colour[0, 2], colour[5, 8]
    assert unsure[0] > sure[0] and unsure[2] < sure[2]
    assert sure[3] == 1.0 and tail[3] < 1.0


def test_picture_of_forty_tokens_in_twenty_five_steps_is_legible(tmp_path):
    """Cells of at least 35 pixels for text of 10 points at 130 dots per inch."""
    step_map = [1, 2, 3, 4] * 5 + [1, 1, 1, 1] * 5
    path = denoising_picture(tmp_path / "new" / "answer.png", Answer("q", ["8"] * 40, step_map, [-0.1] * 40, 38, 4, 0))
    width, height = png_size(path)
    assert width > 35 * 40 and height > 35 * 25
