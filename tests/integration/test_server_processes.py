"""Rollout servers as processes of their own: killed, stopped, restarted, shared by two trainer processes."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.tiny import TinyModel, prompt

from dirl.rollout import ServerEngine, TorchEngine
from dirl.rollout.engine import EnginesLostError
from dirl.rollout.remote.wire import Health, loads
from dirl.trajectory_files import read_trajectories
from dirl.types import DecodingParams, GenerationRequest, Trajectory

ROOT = Path(__file__).parents[2]
SOURCE, OTHER = TinyModel(), TinyModel(nudge=0.3)
DESCRIPTION = SOURCE.describe()
PARAMS = DecodingParams(threshold=0.5, max_response_tokens=32)
GREEDY = DecodingParams(temperature=0, max_response_tokens=16)
ONE_AT_A_TIME = "--engine.max_batch_size=1"
"""Then a trajectory is bitwise the same in whatever company it is decoded."""


class Server:
    """`lightning run serve` of the tiny model."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "dirl.cli", "serve", "--source=tests.tiny.TinyModel", ONE_AT_A_TIME]
        command += ["--engine=dirl.rollout.TorchEngine", f"--port={port}"]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    def wait(self) -> "Server":
        """Until it has said where it is."""
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def health(self) -> Health:
        with urllib.request.urlopen(f"{self.url}/health", timeout=10) as response:
            return loads(Health, response.read())


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """Three; a test that kills one puts another into its place."""
    made = [Server() for _ in range(3)]
    made[:] = [server.wait() for server in made]
    yield made
    for server in made:
        server.process.kill()
        server.process.wait()


def requests(prompts: int, group: int = 4) -> list[GenerationRequest]:
    return [GenerationRequest(f"p{k}", i, prompt(5, k), seed=100 * k + i) for k in range(prompts) for i in range(group)]


def weights(source: TinyModel = SOURCE) -> list[tuple[str, torch.Tensor]]:
    return [(name, p.detach()) for name, p in source.build(DESCRIPTION.config).named_parameters()]


def client(urls: list[str], **options) -> ServerEngine:
    engine = ServerEngine(urls, **{"start_timeout_s": 0.1} | options)
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, DESCRIPTION.spec, "cpu")
    return engine


def undisturbed(
    wanted: list[GenerationRequest], decoding: DecodingParams, version: int, source: TinyModel = SOURCE
) -> dict[tuple[str, int], Trajectory]:
    engine = TorchEngine(max_batch_size=1)
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, DESCRIPTION.spec, "cpu")
    engine.update_weights(weights(source), version)
    return {t.key: t for t in engine.generate(wanted, decoding)}


def test_killed_and_stopped_in_mid_rollout_and_back_after_the_next_push(servers: list[Server], caplog) -> None:
    engine = client([server.url for server in servers], stall_timeout_s=2, connect_timeout_s=5)
    engine.update_weights(weights(), 3)
    killed, stopped, _ = servers
    made = []
    for trajectory in engine.generate(requests(15), PARAMS):
        made.append(trajectory)
        if len(made) == 4:
            assert all(link.in_flight > 1 for link in engine.links), "all three are at work"
            killed.signal(signal.SIGKILL)
            stopped.signal(signal.SIGSTOP)
    assert len(made) == 60
    assert {t.key: t for t in made} == undisturbed(requests(15), PARAMS, 3)
    lost = [r.getMessage() for r in caplog.records if "is lost" in r.getMessage()]
    assert len(lost) == 2
    assert killed.url in lost[0] and stopped.url in lost[1] and "no progress for 2 s" in lost[1]
    assert [link.alive for link in engine.links] == [False, False, True]

    killed.process.wait()
    servers[0] = Server(killed.port).wait()
    stopped.signal(signal.SIGCONT)
    assert servers[0].health().policy_version == -1
    before = [server.health().heartbeat for server in servers]
    assert {t.key: t for t in engine.generate(requests(2), PARAMS)} == undisturbed(requests(2), PARAMS, 3)
    assert servers[0].health().heartbeat == before[0] == 0, "no work without weights"

    engine.update_weights(weights(OTHER), 4)
    assert [server.health().policy_version for server in servers] == [4, 4, 4]
    new, old = (undisturbed(requests(12), GREEDY, 4, source) for source in (OTHER, SOURCE))
    assert {t.key: t for t in engine.generate(requests(12), GREEDY)} == new
    assert any(new[key].response_ids != old[key].response_ids for key in new)
    assert servers[0].health().heartbeat > 0 and servers[1].health().heartbeat > before[1]
    engine.close()


RANK = """
import datetime, sys
import torch.distributed as dist
from dirl.rollout import ServerEngine
from dirl.trajectory_files import write_trajectories
from tests.integration.test_server_processes import PARAMS, client, requests, weights

rank, port, out, *urls = sys.argv[1:]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", datetime.timedelta(seconds=60), world_size=2, rank=int(rank))
engine = client(urls, connect_timeout_s=5)
for version in (8, 9):
    engine.update_weights(iter(weights()), version)
    assert [link.alive for link in engine.links] == [True, False, True], [link.reason for link in engine.links]
write_trajectories(out, engine.generate(requests(10)[int(rank) :: 2], PARAMS))
engine.sleep()
engine.close()
"""


def test_two_trainer_processes_share_the_servers_and_agree_on_who_is_lost(
    servers: list[Server], tmp_path: Path
) -> None:
    rendezvous, absent = free_port(), f"http://127.0.0.1:{free_port()}"
    urls = [servers[1].url, absent, servers[2].url]  # the first and the last are pushed to by rank 0
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outputs = [tmp_path / f"{rank}.jsonl" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(rendezvous), str(out), *urls], env=env)
        for rank, out in enumerate(outputs)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    made = [trajectory for out in outputs for trajectory in read_trajectories(out)]
    assert len(made) == 40
    assert {t.key: t for t in made} == undisturbed(requests(10), PARAMS, 9)


def test_when_all_servers_end_the_run_ends_with_their_names(servers: list[Server]) -> None:
    engine = client([server.url for server in servers], stall_timeout_s=20)
    engine.update_weights(weights(), 5)
    running = engine.generate(requests(50), PARAMS)
    next(running)
    started = time.monotonic()
    for server in servers:
        server.signal(signal.SIGTERM)
    with pytest.raises(EnginesLostError, match="no rollout server is left") as caught:
        list(running)
    assert all(server.url in str(caught.value) for server in servers)
    assert [server.process.wait(20) for server in servers] == [0, 0, 0], "they end cleanly, in mid-rollout too"
    assert time.monotonic() - started < 20
    engine.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
