"""The replay engine: gives back what was written, and refuses a file that does not fit."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dirl.rollout import ReplayEngine
from dirl.trajectory_files import write_trajectories
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

SPEC = ModelSpec(block_size=4, mask_token_id=9, stop_token_ids=(8,), pad_token_id=0, vocab_size=10)
PROMPT = (1, 2, 3, 4, 5)


def trajectory(prompt_id: str = "0", sample_index: int = 0, **changes: object) -> Trajectory:
    made = Trajectory(
        prompt_id=prompt_id,
        sample_index=sample_index,
        prompt_ids=PROMPT,
        response_ids=(6, 8, 7),
        response_length=2,
        step_map=(2, 1, 1),
        behaviour_logprobs=(-0.1, -1 / 3, -2e-17),
        finish_reason="stop",
        policy_version=4,
        reward=0.5,
        rewards={"exact_answer": 1.0},
        advantage=-1.25,
    )
    return dataclasses.replace(made, **changes)


def request(prompt_id: str = "0", sample_index: int = 0, prompt_ids: tuple[int, ...] = PROMPT) -> GenerationRequest:
    return GenerationRequest(prompt_id, sample_index, prompt_ids, seed=0)


def engine_from(path: Path, spec: ModelSpec = SPEC) -> ReplayEngine:
    engine = ReplayEngine(str(path))
    engine.setup(None, None, spec, "cpu")
    return engine


def stored(folder: Path, trajectories: Sequence[Trajectory]) -> Path:
    path = folder / "deep" / "trajectories.jsonl"
    assert write_trajectories(path, trajectories) == len(trajectories)
    return path


def test_each_request_gets_the_stored_trajectory_of_its_key(tmp_path: Path) -> None:
    made = [trajectory(str(p), i, policy_version=p, advantage=i / 3) for p in range(3) for i in range(4)]
    engine = engine_from(stored(tmp_path, made))
    wanted = random.Random(0).sample(made, 9)
    requests = [request(t.prompt_id, t.sample_index) for t in wanted]
    assert list(engine.generate(requests, DecodingParams())) == wanted


def test_new_weights_change_nothing_but_the_version_of_the_engine(tmp_path: Path) -> None:
    engine = engine_from(stored(tmp_path, [trajectory()]))
    weights = iter([("a", torch.zeros(1)), ("b", torch.zeros(1))])
    engine.update_weights(weights, 7)
    assert len(list(weights)) == 2, "there is nothing to gather them for"
    assert engine.policy_version == 7
    assert list(engine.generate([request()], DecodingParams())) == [trajectory()]


@pytest.mark.parametrize("missing", [request("1"), request(sample_index=1)])
def test_a_request_without_a_trajectory_is_an_error(missing: GenerationRequest, tmp_path: Path) -> None:
    engine = engine_from(stored(tmp_path, [trajectory()]))
    name = f"{missing.prompt_id}#{missing.sample_index}"
    with pytest.raises(ValueError, match=f"trajectories.jsonl: no trajectory {name} among 1; use the data"):
        list(engine.generate([request(), missing], DecodingParams()))


def test_a_trajectory_of_another_prompt_is_an_error(tmp_path: Path) -> None:
    engine = engine_from(stored(tmp_path, [trajectory()]))
    with pytest.raises(ValueError, match="trajectory 0#0 was made from another prompt"):
        list(engine.generate([request(prompt_ids=(1, 2, 3, 4, 6))], DecodingParams()))


def test_a_trajectory_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = stored(tmp_path, [trajectory(), trajectory(sample_index=1), trajectory()])
    with pytest.raises(ValueError, match="trajectory 0#0 stands twice"):
        engine_from(path)


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_a_file_without_trajectories_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"empty\.jsonl: holds no trajectories"):
        engine_from(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 16}, r"prompt \(5\) plus response \(3\) tokens do not fill blocks of block_size=16"),
        ({"vocab_size": 8}, "token id 8 does not fit vocab_size=8"),
        ({"mask_token_id": 7}, "the response holds the mask token 7"),
        ({"unknown_ids": (5, 7)}, "the response holds the id 7, for which the tokenizer has no token"),
    ],
)
def test_a_file_of_another_model_is_refused_at_set_up(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"trajectory 0#0: .*{message}"):
        engine_from(stored(tmp_path, [trajectory()]), dataclasses.replace(SPEC, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_map": (1, 1)}, "have 3, 2 and 3 entries"),
        ({"response_length": 4}, r"response_length=4 is not within 1..3"),
        ({"step_map": (1, 0, 1)}, "step_map holds 0"),
    ],
)
def test_a_damaged_trajectory_is_refused_at_set_up(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        engine_from(stored(tmp_path, [trajectory(**changes)]))


def without(row: dict, name: str) -> dict:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not a trajectory: Invalid JSON"),
        ("[1, 2]", "not a trajectory"),
        (json.dumps(dataclasses.asdict(trajectory()) | {"colour": 1}), r"unknown fields \['colour'\]"),
        (json.dumps(without(dataclasses.asdict(trajectory()), "step_map")), "step_map"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line: str, message: str, tmp_path: Path) -> None:
    path = stored(tmp_path, [trajectory()])
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"trajectories.jsonl:3: .*{message}"):
        engine_from(path)
