"""The command `trace`: what it takes texts and block size from, and what it says where it cannot make a page."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from tests.tiny import ALPHABET, TinyModel, prompt, sample_groups
from tests.unit.report.traced import row

from dirl.cli.errors import entry
from dirl.cli.trace import trace
from dirl.models.export import save_model
from dirl.rollout.annotations import annotations
from dirl.trajectory_files import write_trajectories
from dirl.types import DecodingParams, Prompt, Trajectory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    source = TinyModel()
    description = source.describe()
    save_model(folder, source.build(description.config), description.tokenizer)
    return folder


@pytest.fixture(scope="module")
def sampled() -> list[Trajectory]:
    groups = sample_groups(TinyModel(), [prompt(5), prompt(6)], 2, DecodingParams(max_response_tokens=12))
    return [trajectory for group in groups for trajectory in group]


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def texts_of(data: dict, i: int) -> list[str | None]:
    return [data["texts"][k] for k in data["response_ids"][i]]


def test_the_models_tokenizer_gives_the_texts(
    model: Path, sampled: list[Trajectory], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "made.jsonl"
    write_trajectories(path, sampled)
    assert entry(["trace", str(path), "--model", str(model)]) == 0
    data = data_of(tmp_path / "made.html")
    assert data["block_size"] == 4 and not data["block_size_guessed"] and data["texts_from"] == str(model)
    tokenizer = TinyModel().describe().tokenizer
    for i, trajectory in enumerate(sampled):
        assert texts_of(data, i) == [tokenizer.decode([token]) for token in trajectory.response_ids]
    special = {data["texts"][k] for k in data["special"]}
    assert special.isdisjoint(ALPHABET) and all(text.startswith("<|") for text in special)
    said = capsys.readouterr().out
    assert re.fullmatch(r"trajectories: 4, prompts: 2, written to .*made\.html \(0\.\d MB\)\n", said)


def test_a_file_with_texts_needs_no_model(model: Path, sampled: list[Trajectory], tmp_path: Path) -> None:
    asked = [Prompt(str(k), prompt(5 + k), f"question {k}", "4") for k in range(2)]
    with_texts, without = tmp_path / "with.jsonl", tmp_path / "without.jsonl"
    write_trajectories(with_texts, sampled, annotations(asked, TinyModel().describe()))
    write_trajectories(without, sampled)
    trace(str(with_texts))
    trace(str(without), model=str(model))
    read, decoded = data_of(tmp_path / "with.html"), data_of(tmp_path / "without.html")
    assert [texts_of(read, i) for i in range(4)] == [texts_of(decoded, i) for i in range(4)]
    assert read["prompts"][1]["question"] == "question 1" and read["prompts"][1]["ground_truth"] == "4"
    assert read["block_size"] == 4 and not read["block_size_guessed"]


def test_without_either_tokens_are_ids_and_the_block_size_a_guess(
    sampled: list[Trajectory], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "made.jsonl"
    write_trajectories(path, sampled)
    trace(str(path))
    data = data_of(tmp_path / "made.html")
    assert data["block_size"] == 4 and data["block_size_guessed"] and set(data["texts"]) == {None}
    _, *notes = capsys.readouterr().out.splitlines()
    assert len(notes) == 2
    assert notes[0] == "block size 4 is guessed from the step maps; --model or --block_size says what it is"
    assert notes[1].startswith("tokens are shown by their ids: give --model")
    trace(str(path), block_size=4, limit=1, output=str(tmp_path / "new" / "page.html"))
    data = data_of(tmp_path / "new" / "page.html")
    assert not data["block_size_guessed"] and len(data["response_ids"]) == 1
    assert "guessed" not in capsys.readouterr().out


def test_without_a_file_it_is_said_what_is_missing(capsys: pytest.CaptureFixture) -> None:
    assert entry(["trace"]) == 2
    assert "file" in capsys.readouterr().err


def test_a_page_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "made.jsonl"
    write_trajectories(path, [row()[0]])
    (tmp_path / "made.html").write_text("mine")
    assert entry(["trace", str(path)]) == 1
    assert "made.html' exists already: name another place, or add --overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "made.html").read_text() == "mine"
    assert entry(["trace", str(path), "--overwrite=true"]) == 0
    assert data_of(tmp_path / "made.html")["title"] == "made.jsonl"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "made.jsonl': holds no trajectories"),
        (b"\n\n", "made.jsonl': holds no trajectories"),
        (b'{"question": "1+1?"}\n', "made.jsonl:1: not a trajectory: prompt_id is missing; "),
        (b'{"messages": []}\n', r"made.jsonl:1: not a trajectory: unknown fields \['messages'\]; "),
        (b"step,loss\n1,2\n", "made.jsonl:1: not a trajectory: Invalid JSON"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "made.jsonl:1: not UTF-8 text"),
    ],
)
def test_what_is_no_file_of_trajectories_is_one_message_and_no_page(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "made.jsonl"
    path.write_bytes(content)
    assert entry(["trace", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said and re.search(message, said), said
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "nowhere.jsonl"}, r"file='nowhere\.jsonl': no such file here"),
        ({"limit": 0}, "limit=0: use at least 1, or null"),
        ({"block_size": -1}, "block_size=-1: use at least 1"),
        ({"block_size": 8}, "its file says block_size=4, not 8"),
        ({"output": "made.jsonl"}, "is the file itself: name another"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trajectory, words = row()
    write_trajectories("made.jsonl", [trajectory], lambda _: words)
    with pytest.raises(ValueError, match=message):
        trace(**({"file": "made.jsonl", "overwrite": True} | options))


def test_a_model_whose_tokenizer_lacks_ids_is_refused(model: Path, sampled: list[Trajectory], tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    far = dataclasses.replace(sampled[0], response_ids=(999, *sampled[0].response_ids[1:]))
    write_trajectories(path, [*sampled[1:], far])
    with pytest.raises(ValueError, match=r"trajectory 0#0: token id 999 does not fit vocab_size=\d+;"):
        trace(str(path), model=str(model))
    assert not (tmp_path / "made.html").exists()


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name a file"):
        trace(str(tmp_path))
