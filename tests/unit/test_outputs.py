"""Places to write to are looked at before the work that fills them."""

from pathlib import Path

import pytest

from dirl import commands
from dirl.outputs import check_new, check_writable


def test_what_exists_is_kept_unless_one_says_otherwise(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.jsonl", tmp_path / "folder"
    check_new(file, "output", False)
    file.write_text("kept")
    folder.mkdir()
    check_new(folder, "output", False)
    (folder / "x").write_text("")
    for path in (file, folder):
        with pytest.raises(
            ValueError, match=r"output='.*' exists already: name another place, or add --overwrite=true"
        ):
            check_new(path, "output", False)
        check_new(path, "output", True)
    assert file.read_text() == "kept"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output='.*file/x' cannot be written: .*; name another folder"):
        check_writable(tmp_path / "file" / "x", "output")
    check_writable(tmp_path / "new" / "deep", "output")


def test_commands_look_before_they_load_a_model(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("{}")
    data = commands.PromptData("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"old\.jsonl' exists already"):
        commands.rollout(None, data, str(tmp_path / "old.jsonl"))
    with pytest.raises(ValueError, match="exists already"):
        commands.evaluate(None, data, [], {"greedy": None}, output=str(tmp_path))
    with pytest.raises(ValueError, match="samples=0: use at least 1"):
        commands.rollout(None, data, str(tmp_path / "new.jsonl"), samples=0)
    with pytest.raises(ValueError, match="decoding is empty"):
        commands.evaluate(None, data, [], {})
