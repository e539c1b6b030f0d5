"""The stream of prompts is a permutation per pass, whatever the number of ranks."""

import json
from itertools import islice

import pytest

from dirl.data.prompt_stream import PromptStream
from dirl.types import Prompt

PROMPTS = [Prompt(str(i), (i,), f"question {i}", str(i)) for i in range(7)]


def taken(stream: PromptStream, count: int) -> list[str]:
    return [prompt.prompt_id for prompt in islice(stream, count)]


def test_every_pass_is_a_permutation_of_its_own() -> None:
    ids = taken(PromptStream(PROMPTS, seed=3), 35)
    passes = [ids[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(one) == [p.prompt_id for p in PROMPTS] for one in passes)
    assert len({tuple(one) for one in passes}) == 5


def test_the_order_is_that_of_the_seed() -> None:
    assert taken(PromptStream(PROMPTS, seed=3), 20) == taken(PromptStream(PROMPTS, seed=3), 20)
    assert taken(PromptStream(PROMPTS, seed=3), 20) != taken(PromptStream(PROMPTS, seed=4), 20)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_turns_in_the_one_stream(world_size: int) -> None:
    one = taken(PromptStream(PROMPTS, seed=3), 24)
    ranks = [taken(PromptStream(PROMPTS, 3, rank, world_size), 24 // world_size) for rank in range(world_size)]
    assert [prompt_id for turn in zip(*ranks, strict=True) for prompt_id in turn] == one


@pytest.mark.parametrize("place", [0, 5, 7, 11])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_stream_goes_on_where_it_was(place: int, world_size: int) -> None:
    rank = world_size - 1
    stream = PromptStream(PROMPTS, 3, rank, world_size)
    taken(stream, place)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(PROMPTS, 3, rank, world_size)
    resumed.load_state_dict(state)
    assert taken(resumed, 20) == taken(stream, 20)


def test_a_used_stream_can_go_back_to_an_older_state() -> None:
    stream = PromptStream(PROMPTS, seed=3)
    state, first = stream.state_dict(), taken(stream, 10)
    taken(stream, 8)
    stream.load_state_dict(state)
    assert taken(stream, 10) == first
