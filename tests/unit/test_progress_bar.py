"""Lines in place of bars where nobody could see a bar."""

import io
import time

import pytest

from dirl import progress_bar
from dirl.progress_bar import Lines, bar, expect


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
