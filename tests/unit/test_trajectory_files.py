"""Trajectories on their way to a file and back: nothing changes, and nothing that is not finite is written or read."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_types import trajectory

from dirl.finite import NotFiniteError
from dirl.trajectory_files import Annotation, read_annotated, read_trajectories, write_trajectories
from dirl.types import Trajectory, trajectory_from_dict


def test_trajectories_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way.jsonl"
    written = [
        trajectory(),
        trajectory(
            prompt_id='Ünï "quoted"\nline', reward=0.5, rewards={"accuracy": 1.0, "längé": -0.5}, advantage=-1.5
        ),
        trajectory(prompt_ids=()),
    ]
    assert write_trajectories(path, iter(written)) == 3
    assert list(read_trajectories(path)) == written
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{f.name for f in dataclasses.fields(Trajectory)}] * 3


def test_a_file_may_hold_blank_lines_and_leave_out_what_has_a_default(tmp_path: Path) -> None:
    row = dataclasses.asdict(trajectory())
    for name in ("reward", "rewards", "advantage"):
        del row[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n\n")
    assert list(read_trajectories(path)) == [trajectory()]


def test_a_trajectory_survives_its_own_dictionary() -> None:
    assert trajectory_from_dict(dataclasses.asdict(trajectory())) == trajectory()


def test_words_stand_beside_the_ids_and_do_not_come_between_a_replay_and_its_trajectories(tmp_path: Path) -> None:
    plain, with_words = tmp_path / "plain.jsonl", tmp_path / "words.jsonl"
    made = [trajectory(), trajectory(prompt_id="other")]
    count = len(made[0].prompt_ids) + len(made[0].response_ids)
    words = {
        made[0].key: Annotation("1+1?", "</script>\u2028", "2", ("x",) * count, 4),
        made[1].key: Annotation(question="nothing else"),
    }
    write_trajectories(plain, made)
    write_trajectories(with_words, made, lambda t: words[t.key])
    assert list(read_trajectories(with_words)) == list(read_trajectories(plain)) == made
    assert list(read_annotated(with_words)) == [(t, words[t.key]) for t in made]
    assert list(read_annotated(plain)) == [(t, Annotation()) for t in made]
    rows = [json.loads(line) for line in with_words.open(encoding="utf-8")]
    assert rows[0]["question"] == "1+1?" and rows[0]["ground_truth"] == "2" and rows[0]["block_size"] == 4
    assert set(rows[1]) - set(rows[0]) == set() and "response" not in rows[1]


def test_what_is_no_text_is_no_file_of_trajectories(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz:1: not UTF-8 text: .*name a file of trajectories"):
        next(read_trajectories(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not a trajectory: Invalid JSON"),
        ("[" * 100_000, "not a trajectory: Invalid JSON"),
        ('["a", "list"]', "not a trajectory"),
        ("17", "not a trajectory"),
        (
            '{"prompt_id": "q", "tokens": [1], "answer": 2}',
            r"not a trajectory: unknown fields \['answer', 'tokens'\]; its own are prompt_id, ",
        ),
        ('{"prompt_id": "q"}', "not a trajectory: sample_index is missing"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"step_map": 3}), "step_map: .*array, got 3"),
        (
            json.dumps(dataclasses.asdict(trajectory()) | {"response_ids": ["a"]}),
            r"response_ids\[0\]: .* got 'a'",
        ),
        (json.dumps(dataclasses.asdict(trajectory()) | {"step_map": [True]}), r"step_map\[0\]: .*integer, got True"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"prompt_id": 7}), "prompt_id: .*string, got 7"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"reward": "1"}), "reward: .*number, got '1'"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"rewards": [1]}), r"rewards: .*object, got \[1\]"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"question": 1}), "question: .*string, got 1"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"token_texts": [1]}), r"token_texts\[0\]: .*string, got 1"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_trajectories(path, [trajectory()])
    path.write_text(path.read_text() + "\n" + line + "\n")
    rows = read_trajectories(path)
    assert next(rows) == trajectory()
    with pytest.raises(ValueError, match=rf"rows\.jsonl:3: .*{message}"):
        next(rows)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
BROKEN = st.sampled_from([math.nan, math.inf, -math.inf])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def made_trajectories(draw: st.DrawFn) -> Trajectory:
    length = draw(st.integers(1, 12))

    def column(values: st.SearchStrategy) -> tuple:
        return tuple(draw(st.lists(values, min_size=length, max_size=length)))

    return Trajectory(
        prompt_id=draw(TEXT),
        sample_index=draw(st.integers(0, 9)),
        prompt_ids=tuple(draw(st.lists(st.integers(0, 200_000), max_size=5))),
        response_ids=column(st.integers(0, 200_000)),
        response_length=draw(st.integers(1, length)),
        step_map=column(st.integers(1, 32)),
        behaviour_logprobs=column(NUMBERS),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        policy_version=draw(st.integers(0, 10**6)),
        reward=draw(st.none() | NUMBERS),
        rewards=draw(st.dictionaries(TEXT, NUMBERS, max_size=3)),
        advantage=draw(st.none() | NUMBERS),
    )


@pytest.mark.property
@given(st.lists(made_trajectories(), max_size=3))
def test_any_trajectories_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, written: list[Trajectory]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_trajectories(path, written)
    assert list(read_trajectories(path)) == written


@pytest.mark.property
@given(made_trajectories(), BROKEN, st.data())
def test_a_number_that_is_not_finite_is_refused_by_name_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, good: Trajectory, broken: float, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(good.behaviour_logprobs) - 1))
    logprobs = list(good.behaviour_logprobs)
    logprobs[place] = broken
    changes = {
        f"behaviour_logprobs[{place}] is": {"behaviour_logprobs": tuple(logprobs)},
        "reward is": {"reward": broken},
        "rewards.length is": {"rewards": good.rewards | {"length": broken}},
        "advantage is": {"advantage": broken},
    }
    message, change = data.draw(st.sampled_from(list(changes.items())))
    with pytest.raises(NotFiniteError) as error:  # made by an engine, a reward, from a checkpoint, from the wire
        dataclasses.replace(good, **change)
    assert f"{good.prompt_id}#{good.sample_index}: {message} {broken}" in str(error.value)

    path = tmp_path_factory.getbasetemp() / "broken.jsonl"
    write_trajectories(path, [good])
    row = json.dumps(dataclasses.asdict(good) | change)  # bare NaN and Infinity, as others write them
    path.write_text(path.read_text() + row + "\n")
    lines = read_trajectories(path)
    next(lines)
    with pytest.raises(ValueError, match="not a trajectory") as error:
        next(lines)
    place = message.removesuffix(" is")
    assert f"broken.jsonl:2: not a trajectory: {place}: Input should be a finite number, got {broken}" in str(
        error.value
    )

    changed = dataclasses.replace(good)
    for name, value in change.items():
        object.__setattr__(changed, name, value)
    with pytest.raises(NotFiniteError) as error:
        write_trajectories(path, [changed])
    assert f"{message} {broken}, which is not written" in str(error.value)


@pytest.mark.parametrize("line", ['"reward": 1e999', '"response_length": NaN', '"step_map": [1, -Infinity]'])
def test_numbers_that_json_reads_as_infinite_are_refused_in_any_field(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps(dataclasses.asdict(trajectory()))
    path.write_text(row[:-1] + ", " + line + "}\n")  # of equal keys the last one counts
    with pytest.raises(
        ValueError, match=r"rows.jsonl:1: not a trajectory: (reward|response_length|step_map\[1\]): .*got -?(nan|inf)"
    ):
        next(read_trajectories(path))
