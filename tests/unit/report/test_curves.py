"""Learning curves, read back from the figures."""

import math

import pytest
from tests.unit.report.answers import png_size

from dirl.report.curves import curves_figure, learning_curves, running_mean

SFT = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "validation_nelbo": 1.5}]
RL = [{"step": 1, "reward": 0.4, "tokens_per_step": 1.5, "entropy": 0.3}, {"step": 2, "reward": 0.6}]


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
