"""What a resumed run says of settings that are not those of its checkpoint."""

import pytest

from dirl.checkpoints import resume
from dirl.checkpoints.resume import flat, say_changes
from dirl.checkpoints.settings import check_same


def said(before: dict, now: dict, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(resume, "rank_zero_info", lines.append)
    say_changes(flat(before), flat(now))
    return lines


def test_a_key_that_is_null_now_is_one_line_with_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a line for each option below it, and one that said that it had not been set."""
    before, now = {"export": {"dtype": "source", "form": "merged"}, "x": 1}, {"export": None, "x": 1}
    assert said(before, now, monkeypatch) == [
        'resumed with another export: dtype "source", form "merged" in the checkpoint, now null'
    ]
    assert said(now, before, monkeypatch) == [
        'resumed with another export: null in the checkpoint, now dtype "source", form "merged"'
    ]
    assert said({"x": 1}, {"x": 1, "samples": {"count": 1}}, monkeypatch) == [
        "resumed with another samples.count: not set in the checkpoint, now 1"
    ]


def test_other_data_are_said_to_be_other_data() -> None:
    """What is compared is a digest, which nobody has given."""
    with pytest.raises(ValueError, match=r"data\.train holds other rows than .*; data\.seed was 0, is 1") as error:
        check_same("data", {"train": "9b2b79", "seed": 0}, {"train": "4c7385", "seed": 1})
    assert "9b2b79" not in str(error.value)
