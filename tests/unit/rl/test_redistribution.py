"""Rollouts that go to another number of processes: nothing lost, nothing twice, in the order that one process has."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dirl.data.prompt_stream import PromptStream
from dirl.rl.redistribution import deal, redistribute, redistribute_buffers
from dirl.types import Prompt

PROMPTS = [Prompt(str(i), (i,), str(i), str(i)) for i in range(7)]


def state(stream: dict, **held: object) -> dict:
    buffer = {"epoch": 3, "steps": []}
    return {"stream": stream, "surplus": [], "prefetched": None, "buffer": buffer} | held


def streamed(*taken: int) -> dict:
    return {"place": 0, "skip": [], "taken": list(taken)}


def streams(states: list[dict]) -> list[PromptStream]:
    made = [PromptStream(PROMPTS, 5, rank, len(states)) for rank in range(len(states))]
    for stream, saved in zip(made, states, strict=True):
        stream.load_state_dict(saved["stream"])
    return made


@pytest.mark.property
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5))
def test_no_prompt_is_lost_or_taken_twice_whatever_each_process_took(phases: list[list[int]]) -> None:
    """Each phase is a run of so many processes, each of which takes so many prompts (refills differ by process)."""
    states = [state(PromptStream(PROMPTS, 5).state_dict())]
    taken: list[Prompt] = []
    for takes in phases:
        ranks = streams(redistribute(states, len(takes)))
        for stream, count in zip(ranks, takes, strict=True):
            taken += [next(stream) for _ in range(count)]
        states = [state(stream.state_dict()) for stream in ranks]
    (last,) = streams(redistribute(states, 1))
    furthest = max(last.skip, default=last.place - 1)  # that any process reached
    taken += [next(last) for _ in range(furthest - last.place + 1 - len(last.skip))]
    alone = PromptStream(PROMPTS, 5)
    order = [next(alone) for _ in taken]
    assert Counter(taken) == Counter(order), "one process takes the same prompts"


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_processes_that_took_equally_many_go_on_in_the_order_of_one(before: int, after: int, takes: int) -> None:
    alone = PromptStream(PROMPTS, 5)
    order = [next(alone) for _ in range(before * takes + 3 * after)]
    ranks = [PromptStream(PROMPTS, 5, rank, before) for rank in range(before)]
    first = [next(stream) for _ in range(takes) for stream in ranks]
    ranks = streams(redistribute([state(stream.state_dict()) for stream in ranks], after))
    assert first + [next(stream) for _ in range(3) for stream in ranks] == order


def test_groups_are_dealt_in_the_order_of_their_prompts() -> None:
    assert deal([["p0", "p2", "p4"], ["p1", "p3"]], 3) == [["p0", "p3"], ["p1", "p4"], ["p2"]]
    assert deal([["p0", "p3"], ["p1", "p4"], ["p2"]], 2) == [["p0", "p2", "p4"], ["p1", "p3"]]
    assert deal([[], []], 2) == [[], []]


def held(steps: list[tuple[str, float, int]], ids: dict[str, list[int]] | None = None) -> dict:
    """Rows of these names, each with one trajectory, or with those of `ids`."""
    made = [
        {
            "micro_batches": [
                {"name": name, "trajectory_ids": torch.tensor([-1, *(ids[name] if ids else [number])])}
                for number, name in enumerate(rows)
            ],
            "loss_divisor": divisor,
            "sequences": count,
            "response_tokens": 10 * count,
            "token_budget": 100,
        }
        for rows, divisor, count in steps
    ]
    return {"epoch": 3, "steps": made}


def names(step: dict) -> str:
    return "".join(row["name"] for row in step["micro_batches"])


def numbers(step: dict) -> dict[str, list[int]]:
    return {row["name"]: row["trajectory_ids"].tolist() for row in step["micro_batches"]}


def test_trajectories_of_different_processes_keep_different_numbers() -> None:
    two = [held([("ac", 5.0, 3)], {"a": [0, 2], "c": [1]}), held([("b", 2.0, 1)], {"b": [0]})]
    (one,) = redistribute_buffers(two, 1)
    assert numbers(one["steps"][0]) == {"a": [-1, 0, 2], "b": [-1, 3], "c": [-1, 1]}


def test_rows_with_parts_of_one_trajectory_go_to_one_process() -> None:
    """Of a and d there are parts in c, and of d in e; b and f stand alone."""
    ids = {"a": [0], "b": [1], "c": [0, 2], "d": [2, 3], "e": [3], "f": [4]}
    two = redistribute_buffers([held([("abcdef", 6.0, 5)], ids)], 2)
    assert [names(rank["steps"][0]) for rank in two] == ["acdef", "b"]


def test_a_step_keeps_its_rows_its_divisor_and_its_count() -> None:
    two = [held([("ac", 5.0, 3), ("", 0.0, 0)]), held([("b", 2.0, 1), ("d", 4.0, 2)])]
    (one,) = redistribute_buffers(two, 1)
    steps = one["steps"]
    assert [(names(step), step["loss_divisor"], step["sequences"]) for step in steps] == [
        ("abc", 7.0, 4),
        ("d", 4.0, 2),
    ]
    assert {step["token_budget"] for step in steps} == {100}
    three = redistribute_buffers(two, 3)
    assert [[list(names(step)) for step in rank["steps"]] for rank in three] == [
        [["a"], ["d"]],
        [["b"], []],
        [["c"], []],
    ]
    for step, (divisor, sequences) in enumerate([(7.0, 4), (4.0, 2)]):
        parts = [rank["steps"][step] for rank in three]
        assert sum(p["loss_divisor"] for p in parts) == divisor
        assert sum(p["sequences"] for p in parts) == sequences
        assert sum(p["response_tokens"] for p in parts) == 10 * sequences


def test_a_rollout_made_ahead_keeps_its_groups_and_counts_each_drop_once() -> None:
    def collection(groups: list[str], dropped: int, seconds: float) -> dict:
        counts = {"dropped_uniform": dropped}
        times = {"generate_s": seconds, "reward_s": 0.0}
        lost = {"p0": dropped}
        made = {"groups": groups, "surplus": [], "sampled": groups, "counts": counts, "lost": lost, **times}
        return made | {"steps": []}

    states = [
        state(
            {"place": 0, "skip": [], "taken": [0, 2]}, prefetched=collection(["p0", "p2"], 1, 2.0), surplus=["s0", "s2"]
        ),
        state(streamed(1, 3), prefetched=collection(["p1", "p3"], 2, 3.0), surplus=["s1"]),
    ]
    (one,) = redistribute(states, 1)
    assert (one["prefetched"], one["surplus"]) == (collection(["p0", "p1", "p2", "p3"], 3, 3.0), ["s0", "s1", "s2"])
    four = redistribute(states, 4)
    assert [rank["prefetched"]["groups"] for rank in four] == [["p0"], ["p1"], ["p2"], ["p3"]]
    assert [rank["prefetched"]["counts"] for rank in four] == [{"dropped_uniform": 3}, {}, {}, {}]
    assert [rank["prefetched"]["lost"] for rank in four] == [{"p0": 3}, {}, {}, {}]
