"""Options of the commands beside training."""

import re
from pathlib import Path

import pytest

from dirl.cli.commands import PromptData, export


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_leaves_something(limit: int) -> None:
    with pytest.raises(ValueError, match=f"data.limit={limit}: use at least 1, or null"):
        PromptData("x.jsonl", limit=limit)


def test_a_prompt_has_room() -> None:
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens=0: use at least 1"):
        PromptData("x.jsonl", max_prompt_tokens=0)


def test_export_says_what_is_no_checkpoint_and_which_there_are(tmp_path: Path) -> None:
    """What `fit` says of its --ckpt_path is of no use here: there is no model to start from."""
    checkpoint = tmp_path / "run" / "logs" / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "config.json").touch()
    for path, said in (
        (tmp_path / "last", "there is no such file or folder; correct the path"),
        (tmp_path, "is a Hugging Face model and no checkpoint of a run: there is nothing to export"),
        (tmp_path / "run", f"is a folder with {checkpoint}: name one of them"),
        (checkpoint.parent, f"is a folder with {checkpoint}: name one of them"),
    ):
        with pytest.raises(ValueError, match=f"^ckpt_path={re.escape(str(path))}:? {re.escape(said)}"):
            export(str(path), str(tmp_path / "out"))
