"""Metrics of two real processes are those of one, to the bit."""

import random
from pathlib import Path

import torch.distributed as dist
from tests.processes import together

from dirl.evaluation import Problem, Response, ResponseMetrics
from dirl.finite import dumps


def problems(count: int) -> list[Problem]:
    rng = random.Random(0)
    found = []
    for number in range(count):
        responses = []
        for i in range(4):
            right, answer = rng.random() < 0.4, rng.choice(["1", "2", None])
            counts = rng.randint(1, 20), rng.randint(1, 9)
            judgement = "lost" if rng.random() < 0.1 else "right" if right else "wrong"
            reward = None if judgement == "lost" else rng.random()
            rewards = {} if reward is None else {"exact": reward}
            responses.append(Response(i, "", judgement, *counts, "stop", answer, reward, rewards))
        found.append(Problem(str(number), "?", "1", tuple(responses)))
    return found


def measured(own: list[Problem]) -> str:
    metrics = ResponseMetrics(["exact"], 4, (1, 2, 4), votes="value", resamples=200, seed=1)
    metrics.update_problems(own)
    return dumps(metrics.compute(), "metrics")


def say(count: int) -> None:
    """In each process: what its part of the problems measures."""
    dist.init_process_group("gloo")
    print(measured(problems(count)[dist.get_rank() :: dist.get_world_size()]))
    dist.destroy_process_group()


def in_processes(count: int, ranks: int, folder: Path) -> set[str]:
    """What each rank says, of problems that are given out among them."""
    return {text.splitlines()[-1] for text in together(say, count, count=ranks, folder=folder)}


def test_two_processes_have_the_numbers_of_one_to_the_bit(tmp_path: Path) -> None:
    assert in_processes(7, ranks=2, folder=tmp_path) == {measured(problems(7))}


def test_a_rank_without_problems_has_them_too(tmp_path: Path) -> None:
    assert in_processes(1, ranks=2, folder=tmp_path) == {measured(problems(1))}
