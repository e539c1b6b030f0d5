"""Places to write to are looked at before the work that fills them."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from dirl.callbacks import Rollout

from dirl.cli import commands
from dirl.cli.evaluate import evaluate
from dirl.models import NewModel
from dirl.outputs import check_new_file, check_new_folder, check_writable
from dirl.rewards import ExactAnswer
from dirl.rollout import TorchEngine
from dirl.trajectory_files import read_trajectories
from dirl.types import DecodingParams, GenerationRequest, Trajectory


def test_what_exists_is_kept_unless_one_says_otherwise(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.jsonl", tmp_path / "folder.v1"
    check_new_file(file, "output", False)
    file.write_text("kept")
    folder.mkdir()
    check_new_folder(folder, "output", False)
    (folder / "x").write_text("")
    for check, path in ((check_new_file, file), (check_new_folder, folder)):
        with pytest.raises(ValueError, match=r"output='.*' exists already: name another place, or add --overwrite"):
            check(path, "output", False)
        check(path, "output", True)
    assert file.read_text() == "kept"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_no_folder_and_a_folder_no_file(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output='.*' is a folder: name a file"):
        check_new_file(tmp_path, "output", overwrite)
    with pytest.raises(ValueError, match=r"output='.*file' is a file: name a folder"):
        check_new_folder(tmp_path / "file", "output", overwrite)


def test_a_rollout_that_is_interrupted_says_where_its_trajectories_are(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "rl.jsonl"
    data.write_text("".join(f'{{"question": "{i}?", "ground_truth_answer": 2}}\n' for i in range(3)))
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        commands.rollout(NewModel(), commands.PromptData(str(data)), str(output), Interrupted(max_batch_size=1))
    assert not output.exists()
    assert len(list(read_trajectories(f"{output}.part"))) == 2
    assert capsys.readouterr().err.endswith(f"what was made until now is in {output}.part\n")


class Interrupted(TorchEngine):
    """After two trajectories."""

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        yield from islice(super().generate(requests, decoding), 2)
        raise KeyboardInterrupt


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
        evaluate(NewModel(), data, {"greedy": DecodingParams()}, rewards=[ExactAnswer()], output=str(tmp_path))
    with pytest.raises(ValueError, match="samples=0: use at least 1"):
        commands.rollout(None, data, str(tmp_path / "new.jsonl"), samples=0)
    with pytest.raises(ValueError, match="decoding is empty"):
        evaluate(NewModel(), data, {})


@pytest.mark.parametrize("value", ["true", "False", " "])
def test_a_switch_is_no_name_of_a_folder(value: str) -> None:
    """`rollout.save_trajectories: true` made a folder `true`."""
    with pytest.raises(ValueError, match=r"rollout\.save_trajectories='.*': name a folder"):
        Rollout(TorchEngine(), [ExactAnswer()], save_trajectories=value)
