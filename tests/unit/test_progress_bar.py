"""Lines in place of bars where nobody could see a bar."""

import io
import logging
import time
import warnings
from types import SimpleNamespace

import pytest
from dirl.callbacks.progress_bar import ProgressLines

from dirl import progress_bar
from dirl.progress_bar import Lines, bar, end_bars, expect, say_above_bars


def lines(seconds_each: float, count: int = 20) -> list[str]:
    file = io.StringIO()
    with Lines(total=count, desc="rollout 3", file=file) as shown:
        for _ in range(count):
            time.sleep(seconds_each)
            shown.update()
    return file.getvalue().splitlines()


def test_short_work_is_silent_and_long_work_has_a_line_each_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(0.0) == []
    monkeypatch.setattr(progress_bar, "LINE_S", 0.1)
    said = lines(0.03)
    assert 2 <= len(said) <= 10
    assert said[0].startswith("rollout 3:") and "20/20" in said[-1]
    assert "\r" not in "".join(said) and "\x1b" not in "".join(said)


def test_a_bar_is_silent_where_it_is_not_shown_and_grows_with_its_work(capsys: pytest.CaptureFixture) -> None:
    with bar(total=0, desc="rollout", shown=False) as hidden:
        expect(hidden, 4)
        hidden.update(4)
    assert hidden.total == 4 and not capsys.readouterr().err
    assert isinstance(bar(range(3)), Lines)  # pytest's stderr is no terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_said_stands_above_the_bars_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Trainer.fit` stopped: ... went on in the line of a bar, and so did a warning of a skipped step."""
    shown = Terminal()
    handler, logger = logging.StreamHandler(shown), logging.getLogger("lightning")
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logging, "lastResort", None)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.write(f"{message}\n"))
    say_above_bars()
    say_above_bars()  # a second run of the process does not lift them twice
    with bar(total=2, desc="epoch", file=shown) as epoch:
        epoch.update()
        logger.warning("said by a logger")
        warnings.warn("said by a warning", stacklevel=1)
        end_bars()
        shown.write("last words")
    lines = shown.getvalue().split("\n")
    assert lines[0].rsplit("\r")[-1] == "said by a logger"
    assert lines[1].rsplit("\r")[-1] == "said by a warning"
    assert lines[-1] == "last words"


@pytest.mark.parametrize(("limits", "ends"), [((2, -1), True), ((-1, 7), True), ((-1, 8), False), ((3, 9), False)])
def test_the_last_epoch_has_a_line_by_whatever_it_is_the_last(
    limits: tuple[int, int], ends: bool, capsys: pytest.CaptureFixture
) -> None:
    """A run that ended by its steps did not say how it ended."""
    trainer = SimpleNamespace(max_epochs=limits[0], max_steps=limits[1], current_epoch=1, global_step=7)
    trainer.is_global_zero, trainer.progress_bar_metrics, trainer.loggers = True, {"train/loss": 1.5}, []
    lines = ProgressLines()
    lines.on_train_start(trainer, None)  # type: ignore[arg-type]
    lines.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert ("epoch 1, ended" in said) == ends
