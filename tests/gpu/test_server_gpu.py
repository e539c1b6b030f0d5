"""Weights pushed from a CUDA trainer to server processes: CUDA IPC on one GPU, NCCL between two, HTTP by the CPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.tiny import TinyModel, prompt

from dirl.rollout import ServerEngine, TorchEngine
from dirl.types import DecodingParams, GenerationRequest, Trajectory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).parents[2]
DESCRIPTION = TinyModel().describe()
GREEDY = DecodingParams(temperature=0, max_response_tokens=16)
REQUESTS = [GenerationRequest(f"p{k}", 0, prompt(5, k), seed=k) for k in range(12)]
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@contextmanager
def served(device: str) -> Iterator[str]:
    """The URL of a server process on this device."""
    command = [sys.executable, "-m", "dirl.cli", "serve", "--source=tests.tiny.TinyModel", f"--device={device}"]
    command += ["--engine=dirl.rollout.TorchEngine", "--engine.max_batch_size=1", "--port=0"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()


def weights(nudge: float) -> list[tuple[str, torch.Tensor]]:
    model = TinyModel(nudge=nudge).build(DESCRIPTION.config).cuda()
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def local(nudge: float, version: int) -> dict[tuple[str, int], Trajectory]:
    engine = TorchEngine(max_batch_size=1)
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, DESCRIPTION.spec, "cuda")
    engine.update_weights(weights(nudge), version)
    return {t.key: t for t in engine.generate(REQUESTS, GREEDY)}


@pytest.mark.parametrize(
    ("transport", "device", "taken"),
    [
        ("auto", "cuda", "cuda_ipc"),
        ("cuda_ipc", "cuda", "cuda_ipc"),
        ("http", "cuda", "http"),
        ("auto", "cpu", "cuda_ipc"),  # the server sees the GPU, though its engine is on the CPU
        pytest.param("nccl", "cuda:1", "nccl", marks=TWO_GPUS),
    ],
)
def test_after_each_push_outputs_are_those_of_the_new_weights(transport: str, device: str, taken: str) -> None:
    with served(device) as url:
        engine = ServerEngine([url], transport=transport, start_timeout_s=60)
        engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, DESCRIPTION.spec, "cuda")
        engine.bucket_bytes = 4096  # many buckets of this small model, some with one large tensor
        for version, nudge in enumerate((0.0, 0.3, 0.0)):
            engine.update_weights(weights(nudge), version)
            assert engine.links[0].sender.transport == taken
            made = {t.key: t for t in engine.generate(REQUESTS, GREEDY)}
            assert {key: t.response_ids for key, t in made.items()} == {
                key: t.response_ids for key, t in local(nudge, version).items()
            }
            assert {t.policy_version for t in made.values()} == {version}
        engine.close()


def test_pushes_by_cuda_ipc_leave_no_memory_behind() -> None:
    with served("cuda") as url:
        engine = ServerEngine([url], transport="cuda_ipc", start_timeout_s=60)
        engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, DESCRIPTION.spec, "cuda")
        pushed = weights(0.0)
        taken = []
        for version in range(6):
            engine.update_weights(pushed, version)
            torch.cuda.ipc_collect()
            taken.append(torch.cuda.memory_allocated())
        assert taken[-1] <= taken[1]
        engine.close()
