"""The folder of an evaluation: what is gone on with, what is refused, what a kill leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dirl.evaluation import Problem, Response, Settings
from dirl.evaluation.problems import read_problem
from dirl.evaluation.results import read_results
from dirl.evaluation.results_folder import ResultsFile, ResultsFolder
from dirl.types import DecodingParams, Prompt, Trajectory

ASKED = {"greedy": {"decoding": {"threshold": 0.9}, "seed": 0}}
PROMPTS = [Prompt(str(n), (1, 2), "?", "1") for n in range(5)]
TWO_AT_A_TIME = Settings(DecodingParams(), samples=2, portion=4)


def done(*numbers: int) -> tuple[list[Problem], list[Trajectory]]:
    responses = tuple(Response(i, "text ü", "wrong", 2, 1, "stop", reward=0.0) for i in range(2))
    problems = [Problem(str(n), "?", "1", responses) for n in numbers]
    made = [
        Trajectory(str(n), i, (1, 2), (3, 4), 2, (1, 1), (-1.0, -1.0), "stop", 0) for n in numbers for i in range(2)
    ]
    return problems, made


def test_the_same_settings_go_on_and_others_are_refused_by_name(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", ASKED)
    folder.started("greedy", [{"device": "cpu"}])
    folder.close()
    again = ResultsFolder(tmp_path / "out", {**ASKED, "sampled": {"seed": 0}})
    assert again.started("greedy", []) == [{"device": "cpu"}]
    again.close()
    other = {"greedy": {"decoding": {"threshold": 0.8}, "seed": 0}, "sampled": {"seed": 0}}
    with pytest.raises(ValueError, match=r"greedy: decoding\.threshold was 0\.9, is 0\.8\).*add --overwrite=true"):
        ResultsFolder(tmp_path / "out", other)
    with pytest.raises(ValueError, match="it holds sampled, not asked for now"):
        ResultsFolder(tmp_path / "out", ASKED)
    ResultsFolder(tmp_path / "out", other, overwrite=True).close()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        ResultsFolder(tmp_path, ASKED)
    (tmp_path / "settings.json").write_text('{"theirs": 1}')
    with pytest.raises(ValueError, match=r"settings\.json: not the settings of an evaluation"):
        ResultsFolder(tmp_path, ASKED)


def test_two_evaluations_do_not_write_to_one_folder(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", ASKED)
    code = (
        "import sys; from dirl.evaluation.results_folder import ResultsFolder\n"
        f"try: ResultsFolder(sys.argv[1], {ASKED!r})\nexcept ValueError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert "another evaluation is writing to it" in run.stdout
    folder.close()


def test_overwriting_removes_what_was_done(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", ASKED)
    folder.file("greedy").append(*done(0, 1))
    folder.close()
    new = ResultsFolder(tmp_path / "out", ASKED, overwrite=True)
    assert new.file("greedy").read(PROMPTS, TWO_AT_A_TIME) == []
    new.close()


@pytest.mark.parametrize("cut", range(0, 700, 7))
def test_whole_portions_outlive_a_kill_at_any_byte(tmp_path: Path, cut: int) -> None:
    """Two portions of two problems; the files of the second end anywhere."""
    file = ResultsFile(tmp_path, "greedy")
    file.append(*done(0, 1))
    sizes = {path: path.stat().st_size for path in (file.problems, file.trajectories)}
    file.append(*done(2, 3))
    with file.problems.open("r+b") as opened:  # the trajectories of a portion are on the disk before its problems
        opened.truncate(min(sizes[file.problems] + cut, file.problems.stat().st_size))
    if cut == 0:
        with file.trajectories.open("r+b") as opened:
            opened.truncate(sizes[file.trajectories] + 11)
    whole = file.problems.stat().st_size >= sizes[file.problems] * 2
    expected = 4 if whole else 2
    assert [p.prompt_id for p in file.read(PROMPTS, TWO_AT_A_TIME)] == [str(n) for n in range(expected)]
    assert len(file.trajectories.read_text().splitlines()) == 2 * expected
    assert file.problems.stat().st_size == sizes[file.problems] * (2 if whole else 1)
    file.append(*done(*range(expected, 5)))
    assert len(file.read(PROMPTS, TWO_AT_A_TIME)) == 5 and file.whole(PROMPTS)


def test_lines_that_somebody_changed_are_refused(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "greedy")
    file.append(*done(0, 7))
    with pytest.raises(ValueError, match="prompt '7' stands where '1' was asked: the file has been changed"):
        file.read(PROMPTS, TWO_AT_A_TIME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": []}, "it has no responses; evaluate anew"),
        ({"reward": 1.0}, r"unknown fields \['reward'\]; its own are prompt_id, "),
        ({"responses": [{"text": "4"}]}, r"responses\[0\].sample_index is missing"),
        ({"generate_s": "1"}, "generate_s: Input should be a valid number, got '1'"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, change: dict, message: str) -> None:
    file = ResultsFile(tmp_path, "greedy")
    file.append(*done(*range(5)))
    first, second, *rest = file.problems.read_text().splitlines(keepends=True)
    file.problems.write_text(first + json.dumps(json.loads(second) | change) + "\n" + "".join(rest))
    with pytest.raises(ValueError, match=f"greedy.jsonl:2: no problem of an evaluation: {message}"):
        file.read(PROMPTS, TWO_AT_A_TIME)


@pytest.mark.parametrize(
    "value, seen",
    [("sure", "got 'sure'"), (None, "got None")],
)
def test_a_judgement_that_there_is_not_is_refused(tmp_path: Path, value: str | None, seen: str) -> None:
    line = {"prompt_id": "1", "question": "?", "ground_truth": "1"}
    response = {"sample_index": 0, "text": "", "judgement": value, "tokens": 1, "steps": 1, "finish_reason": "stop"}
    with pytest.raises(ValueError, match=rf"here: .*responses\[0\].judgement: Input should be 'right', .*{seen}"):
        read_problem(json.dumps({**line, "responses": [response]}), "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no results.json there; name folders that"),
        ("{", "no JSON"),
        ('{"greedy": {"accuracy": 1}}', r"no results of `lightning run evaluate` \(format None"),
        ('[{"step": 0.0}]', "no results of"),
        (json.dumps({"format": "dirl evaluation 1", "results": [{"model": "m"}]}), "results that lack something"),
    ],
)
def test_what_is_no_file_of_results_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)
