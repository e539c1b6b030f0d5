"""Metrics of two real processes are those of one, to the bit."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from dirl.evaluation import Problem, Response, ResponseMetrics
from dirl.finite import dumps

ROOT = Path(__file__).parents[3]


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


def in_processes(count: int, ranks: int) -> set[str]:
    """What each rank says, of problems that are given out among them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-m", "tests.unit.evaluation.test_ranks", str(count)]
    started = [
        subprocess.Popen(command, env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    return {text.splitlines()[-1] for text in said}


def test_two_processes_have_the_numbers_of_one_to_the_bit() -> None:
    assert in_processes(7, ranks=2) == {measured(problems(7))}


def test_a_rank_without_problems_has_them_too() -> None:
    assert in_processes(1, ranks=2) == {measured(problems(1))}


if __name__ == "__main__":
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    place, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    print(measured(problems(int(sys.argv[1]))[place::world]))
    torch.distributed.destroy_process_group()
