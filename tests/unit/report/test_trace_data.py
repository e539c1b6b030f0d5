"""What a page is given of trajectories: all that it shows comes back from it."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.report.traced import many_rows, row

from dirl.report.trace_data import LOGPROB_UNIT, fitting_block_size, told_texts, trace_data
from dirl.trajectory_files import Annotation
from dirl.types import Trajectory


def read_back(data: dict, i: int) -> dict:
    """Fields of a trajectory as the page has them."""
    columns, prompt = data["trajectories"], data["prompts"][data["trajectories"]["prompt"][i]]
    values = {name: columns[name][i] for name in columns if name != "prompt"}
    return values | {
        "prompt_id": prompt["id"],
        "prompt_ids": tuple(data["ids"][k] for k in prompt["tokens"]),
        "response_ids": tuple(data["ids"][k] for k in data["response_ids"][i]),
        "step_map": tuple(data["step_maps"][i]),
        "rewards": {name: values[i] for name, values in data["rewards"].items() if values[i] is not None},
    }


@pytest.mark.property
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6), st.floats(-50, 0)), min_size=1, max_size=6))
def test_a_page_holds_what_the_trajectories_hold(drawn: list[tuple[str, int, float]]) -> None:
    rows = [
        row(
            prompt_id,
            index,
            response_ids=(token, 2, 3, 4, 5, 6),
            behaviour_logprobs=(logprob, -0.1, -0.2, -0.3, -0.4, -0.5),
            rewards={} if index % 2 else {"accuracy": 1.0, "length": -0.5},
            reward=None if index % 2 else 0.5,
        )
        for index, (prompt_id, token, logprob) in enumerate(drawn)
    ]
    data = json.loads(json.dumps(trace_data(rows, 4, {})))
    for i, (trajectory, _) in enumerate(rows):
        wanted = dict(vars(trajectory))
        logprobs = wanted.pop("behaviour_logprobs")
        assert read_back(data, i) == wanted
        read = [value * data["logprob_unit"] for value in data["logprobs"][i]]
        assert read == pytest.approx(logprobs, abs=LOGPROB_UNIT / 2 + 1e-12)


def test_a_prompt_stands_once_and_so_does_the_text_of_a_token() -> None:
    first, second = row("q", 0), row("q", 1)
    silent = (row("other", 0)[0], Annotation())
    rows = [(first[0], Annotation()), second, silent]
    data = trace_data(rows, 4, told_texts(rows))
    assert data["trajectories"]["prompt"] == [0, 0, 1]
    assert [prompt["question"] for prompt in data["prompts"]] == ["What?", None], "from whichever says it"
    assert sorted(data["ids"]) == [1, 2, 3, 4, 5, 6, 10, 11] and len(data["texts"]) == 8
    assert [data["texts"][k] for k in data["special"]] == ["<|im_end|>"], "and not <0xC3>"


def test_frequent_tokens_have_short_numbers() -> None:
    data = trace_data([row(response_ids=(7, 7, 7, 8, 7, 7))], 4, {})
    assert data["ids"][0] == 7 and data["texts"] == [None] * 4


def test_a_reward_that_some_lack_is_null_for_them() -> None:
    data = trace_data([row(), row("r", rewards={"length": 0.123456789})], 4, {})
    assert data["rewards"] == {"accuracy": [1.0, None], "length": [None, 0.123457]}


@pytest.mark.parametrize(("sizes", "found"), [((4,), 4), ((8,), 8), ((16, 16), 16)])
def test_the_block_size_is_the_smallest_that_the_step_maps_allow(sizes: tuple[int, ...], found: int) -> None:
    rows = [one for size in sizes for one in many_rows(1, 2, 96, size)]
    wanted = found if found > 4 else 1  # all of a block of 4 in one step: any block does
    assert fitting_block_size([trajectory for trajectory, _ in rows]) == wanted


def test_a_step_map_with_a_gap_fits_no_block_size() -> None:
    trajectory = row(step_map=(1, 3, 3, 1, 3, 1))[0]
    with pytest.raises(ValueError, match="no block size fits the step maps of all trajectories: name the one"):
        fitting_block_size([trajectory])
    assert trace_data([(trajectory, Annotation())], 4, {})["step_maps"] == [(1, 3, 3, 1, 3, 1)], "if one names it"


@pytest.mark.parametrize(
    ("change", "block_size", "message"),
    [
        ({}, 3, "do not fill blocks of block_size=3"),
        ({}, 8, r"trajectory q#0: its file says block_size=4, not 8"),
        ({"step_map": (1, 2)}, 4, "must cover the same positions"),
        ({"response_length": 9}, 4, r"response_length=9 is not within 1\.\.6"),
        ({"finish_reason": "tired"}, 4, "finish_reason='tired'"),
        ({"response_ids": (1, 2, 3, 4, 5, -6)}, 4, "token id -6"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, block_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace_data([row(**change)], block_size, {})


def test_a_file_that_contradicts_itself_is_refused() -> None:
    trajectory, words = row()
    other = dataclasses.replace(words, token_texts=("P", *(words.token_texts or ())[1:]))
    with pytest.raises(ValueError, match=r"token 10 is 'P' here and 'p' before: .* two tokenizers"):
        told_texts([(trajectory, words), (trajectory, other)])
    with pytest.raises(ValueError, match="q#0: token_texts has 1 entries for 8 tokens"):
        told_texts([(trajectory, dataclasses.replace(words, token_texts=("P",)))])


def test_log_probs_are_exact_enough_for_any_probability() -> None:
    assert math.expm1(LOGPROB_UNIT / 2) < 1e-4


def test_made_rows_are_trajectories() -> None:
    assert all(isinstance(t, Trajectory) for t, _ in many_rows(1, 1, 20))
