"""Lightning's progress where it is looked at, and where it goes to a file."""

from types import SimpleNamespace

import pytest
from dirl.callbacks import progress_bar


@pytest.mark.parametrize(("terminal", "kind"), [(True, "TQDMProgressBar"), (False, "ProgressLines")])
def test_lightnings_bar_is_that_of_the_place(terminal: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "on_terminal", lambda: terminal)
    assert type(progress_bar.progress_callback()).__name__ == kind


@pytest.mark.parametrize(
    ("max_steps", "begun_at", "batches", "total"),
    [
        (600, 0, 312, 312),
        (600, 312, 312, 288),  # what is left of the steps
        (10, 0, 312, 10),
        (-1, 0, 4, 4),
    ],
)
def test_the_total_of_an_epoch_stays_what_it_was_at_its_begin(
    max_steps: int, begun_at: int, batches: int, total: int
) -> None:
    for done in range(1, total + 1):
        trainer = SimpleNamespace(max_steps=max_steps, global_step=begun_at + done, num_training_batches=batches)
        assert progress_bar.batches_of_epoch(trainer, done) == total
