"""Lightning's progress where it is looked at, and where it goes to a file."""

import pytest
from dirl.callbacks import progress_bar


@pytest.mark.parametrize(("terminal", "kind"), [(True, "TQDMProgressBar"), (False, "ProgressLines")])
def test_lightnings_bar_is_that_of_the_place(terminal: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "on_terminal", lambda: terminal)
    assert type(progress_bar.progress_callback()).__name__ == kind
