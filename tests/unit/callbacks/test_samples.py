"""Samples while a run trains: which are shown, and which loggers get them."""

from types import SimpleNamespace
from typing import Any

import pytest
from dirl.callbacks import Samples
from dirl.callbacks.samples import COLUMNS, drawn, log_samples
from tests.unit.report.test_sample_texts import sample
from tests.unit.report.traced import row


def test_samples_are_of_different_prompts_whatever_the_order() -> None:
    made = [row(prompt, number)[0] for prompt in "abcdef" for number in range(4)]
    found = [t.key for t in drawn(made, 3, (0, 7))]
    assert found == [t.key for t in drawn(made[::-1], 3, (0, 7))]
    assert len({prompt for prompt, _ in found}) == 3
    assert found != [t.key for t in drawn(made, 3, (0, 8))], "another epoch shows others"
    assert len(drawn(made[:4], 3, (0, 7))) == 1 and drawn([], 3, (0,)) == []


class Calls:
    """Takes any call of one method."""

    def __init__(self, method: str) -> None:
        self.calls: list[tuple[tuple, dict]] = []
        setattr(self, method, lambda *args, **named: self.calls.append((args, named)))


def test_tensorboard_gets_markdown_with_the_step() -> None:
    experiment = Calls("add_text")
    log_samples(SimpleNamespace(experiment=experiment), [sample()], 20)
    (((tag, text, step), _),) = experiment.calls
    assert (tag, step) == ("samples", 20) and "    so 46" in text


def test_wandb_gets_a_table_without_a_step_of_its_own_counting() -> None:
    logger: Any = Calls("log_text")
    log_samples(logger, [sample(), sample(ground_truth=None)], 20)
    ((args, named),) = logger.calls
    assert args == ("samples",) and named["columns"] == list(COLUMNS) and "step" not in named
    assert named["data"][0] == ["20", "20", "12+34", "so 46", "46", "0.75", "True"]


def test_mlflow_and_comet_get_a_text() -> None:
    mlflow, comet = Calls("log_text"), Calls("log_text")
    log_samples(SimpleNamespace(experiment=mlflow, run_id="r1"), [sample()], 20)
    log_samples(SimpleNamespace(experiment=comet), [sample()], 20)
    assert mlflow.calls[0][0][0] == "r1" and mlflow.calls[0][0][2] == "samples/step000020.md"
    assert comet.calls[0][1] == {"step": 20}


def test_a_logger_that_takes_no_text_is_left_alone() -> None:
    numbers_only, bare = Calls("log_metrics"), SimpleNamespace()
    log_samples(SimpleNamespace(experiment=numbers_only), [sample()], 20)
    log_samples(bare, [sample()], 20)
    assert numbers_only.calls == [] and vars(bare) == {}


def test_options_that_cannot_be() -> None:
    for name in ("every_n_epochs", "count", "max_characters"):
        with pytest.raises(ValueError, match=rf"samples.{name}=0: use a finite number that is at least 1"):
            Samples(**{name: 0})


def test_without_rollouts_before_it_there_is_nothing_to_show() -> None:
    samples = Samples()
    with pytest.raises(ValueError, match="which must stand before it"):
        samples.setup(SimpleNamespace(callbacks=[samples]), None, "fit")
