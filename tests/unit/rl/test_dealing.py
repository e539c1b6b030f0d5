"""Prompts are dealt by expected tokens: whole, in balance, alike on all ranks, and as before after a resume."""

import json
from dataclasses import replace
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.rl.test_buffer import trajectory

from dirl.data.prompt_stream import PromptStream
from dirl.data.rl import RLDataModule
from dirl.rl.dealing import ResponseLengths, deal
from dirl.rl.steps import cut_steps
from dirl.types import Prompt


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 5), st.integers(1, 9))
def test_every_item_is_dealt_once_and_in_its_step(costs: list[int], steps: int, ranks: int) -> None:
    shares = deal(costs, steps, ranks)
    assert sorted(chain.from_iterable(share.items for share in shares)) == list(range(len(costs)))
    bounds = [round(i * len(costs) / steps) for i in range(steps + 1)]
    for share in shares:
        assert len(share.steps) == steps and sum(share.steps) == len(share.items)
        for step, (begin, end) in enumerate(pairwise(bounds)):
            assert share.steps[step] == sum(begin <= item < end for item in share.items)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_no_rank_has_more_than_the_mean_and_one_item(costs: list[int], ranks: int) -> None:
    loads = [sum(costs[item] for item in share.items) for share in deal(costs, 1, ranks)]
    assert max(loads) <= sum(costs) / ranks + max(costs)


def test_one_costly_item_stands_against_many() -> None:
    assert [share.items for share in deal([9, 1, 8, 2, 3, 4, 3], 1, 3)] == [[0, 1], [2, 3], [4, 5, 6]]


def test_fewer_prompts_than_ranks_leave_some_without_any() -> None:
    shares = deal([5, 5], 2, 4)
    assert [share.items for share in shares] == [[0], [1], [], []]
    assert [share.steps for share in shares] == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_what_is_expected_is_the_prompt_before_anything_is_known_and_then_a_running_mean() -> None:
    lengths = ResponseLengths()
    prompts = [("a", 10), ("b", 20)]
    assert lengths.costs(prompts, 4) == [10, 20]
    lengths.settle([{"a": 100.0}, {}])
    assert lengths.costs(prompts, 4) == [410, 420], "of an unknown one the mean of the known"
    lengths.settle([{"a": 200.0}, {"b": 50.0}])
    assert lengths.costs(prompts, 4) == [10 + 4 * 150, 20 + 4 * 50]


def test_lengths_are_of_a_rollouts_responses() -> None:
    lengths, one = ResponseLengths(), trajectory(0, 4)
    lengths.take([replace(one, response_length=2), replace(one, sample_index=1, response_length=4)])
    assert lengths.pending == {one.prompt_id: 3.0}
    assert lengths.known == {}, "until all ranks know"


def test_groups_are_cut_into_the_steps_that_their_prompts_were_dealt_for() -> None:
    groups = [[trajectory(0, 4)]] * 5
    assert [len(step) for step in cut_steps(groups, 3, [3, 0, 2])] == [3, 0, 2]
    assert [len(step) for step in cut_steps(groups[:2], 3, [3, 0, 2])] == [1, 0, 1]
    assert [len(step) for step in cut_steps([], 3, [0, 0, 0])] == [0, 0, 0]


PROMPTS = [Prompt(str(i), tuple(range(1 + i * 7 % 5)), str(i), str(i)) for i in range(11)]


def module(prompts_per_rollout: int) -> RLDataModule:
    return RLDataModule(
        "unused.jsonl", prompts_per_rollout=prompts_per_rollout, group_size=2, steps_per_rollout=2, seed=0
    )


class Ranks:
    """The DataModules of all ranks in one process, which tell one another what they know."""

    def __init__(self, count: int, prompts_per_rollout: int) -> None:
        self.data = [module(prompts_per_rollout) for _ in range(count)]
        for rank, data in enumerate(self.data):
            data.stream = PromptStream(PROMPTS, 0, rank, count)
            data._of_all = lambda own: [(one.stream.taken.copy(), one.lengths.pending) for one in self.known]

    def rollout(self, refills: tuple[int, ...] = ()) -> list[list[str]]:
        """The ids that each rank takes; the first ranks refill so many more."""
        self.known = [_Known(data) for data in self.data]
        counts = [sum(data.deal_prompts()) for data in self.data]
        extra = [*refills, *[0] * len(counts)]
        taken = [
            [next(data.stream).prompt_id for _ in range(count + more)]
            for data, count, more in zip(self.data, counts, extra, strict=False)
        ]
        for data, ids in zip(self.data, taken, strict=True):
            data.lengths.pending = {name: float(10 + int(name)) for name in ids}
        return taken


class _Known:
    """What a rank had before anybody was dealt."""

    def __init__(self, data: RLDataModule) -> None:
        self.stream, self.lengths = PromptStream(PROMPTS, 0), data.lengths.copy()
        self.stream.taken = data.stream.taken.copy()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_prompts_of_a_rollout_are_the_same_set_whatever_the_number_of_ranks(count: int) -> None:
    one, several = Ranks(1, 5), Ranks(count, 5)
    for _ in range(6):
        assert sorted(chain.from_iterable(several.rollout())) == sorted(one.rollout()[0])


def test_refills_of_one_rank_are_taken_by_no_other_and_later_by_nobody() -> None:
    ranks = Ranks(2, 4)
    first = list(chain.from_iterable(ranks.rollout((2, 0))))
    second = list(chain.from_iterable(ranks.rollout()))
    assert len(set(first)) == 6
    assert len(set(first + second)) == 10, "of 11 prompts none comes twice in a pass"


def test_a_resumed_stream_deals_as_it_would_have() -> None:
    ranks, resumed = Ranks(2, 4), Ranks(2, 4)
    ranks.rollout((1, 0))
    for data, other in zip(ranks.data, resumed.data, strict=True):
        other.stream.load_state_dict(json.loads(json.dumps(data.stream.state_dict())))
        other.lengths = data.lengths.copy()
    assert [ranks.rollout() for _ in range(3)] == [resumed.rollout() for _ in range(3)]
