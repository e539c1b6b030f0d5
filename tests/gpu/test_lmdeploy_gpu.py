"""LMDeploy's engine on a CUDA device: the checks at the shape of a model of 0.6B, each in less than two minutes.

A table of what they measured comes last; with OUT in the environment, it is written to $OUT/lmdeploy_tests.json too.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import record
from tests.gpu import lmdeploy_checks as checks
from tests.gpu.bounds import Broken, Numbers
from tests.gpu.engine_pair import SDAR_0_6B, SDAR_1_7B, Shape

from dirl.types import DecodingParams, ModelSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("lmdeploy") is None, reason="needs lmdeploy"),
]

BF16 = torch.bfloat16
SMALL = Shape(128, 256, 2, 4, 2, 64, 260, initializer_range=0.15, max_batch_size=16, kv_blocks=64)
"""For runs; LMDeploy's kernels want heads of 64."""
EXPERTS = Shape(512, 2048, 4, 8, 4, 64, 151936, embedding_range=0.4, experts=16)
"""Few layers: in bf16 a router's close calls fall otherwise, and each costs log-probs more than rounding does."""

SHOWN = {
    "equal_responses": "equal responses",
    "equal_tokens": "equal tokens",
    "chance": "by chance",
    "old_weights": "of old weights",
    "logprob_mean": "log-probs off by",
    "trainer_greedy_mean": "trainer's greedy by",
    "trainer_drawn_mean": "drawn by",
    "trainer_drawn_p99": "p99",
    "push_bytes": "bytes",
    "push_s": "push s",
    "copy_s": "copy s",
    "held": "held bytes",
    "allocated_awake": "awake",
    "allocated_asleep": "asleep",
    "reserved_asleep": "reserved",
    "sleep_again_s": "sleep s",
    "wake_again_s": "wake s",
    "distinct": "distinct",
    "repeated": "repeated",
    "alone": "alone",
    "other_seeds": "other seeds",
    "train/mismatch_abs": "mismatch",
}
"""What the table has of the numbers, and how it calls them."""

Run = Callable[..., Numbers]


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, Any]]]:
    """Name of a test -> its numbers; shown and written when all have run."""
    found: dict[str, dict[str, Any]] = {}
    yield found
    if found:
        with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            print("", *(line(name, numbers) for name, numbers in found.items()), sep="\n")
    if found and "OUT" in os.environ:
        path = Path(os.environ["OUT"]) / "lmdeploy_tests.json"
        path.write_text(json.dumps(versions() | {"checks": found}, indent=2), encoding="utf-8")


@pytest.fixture
def run(request: pytest.FixtureRequest, measured: dict[str, dict[str, Any]]) -> Run:
    """Calls a check on the device; its numbers are kept if it fails, too."""

    def call(check: Callable[..., Numbers], shape: Shape, **options: object) -> Numbers:
        started = time.perf_counter()
        numbers: dict[str, Any] = {}
        try:
            numbers = check(shape, torch.device("cuda", 0), BF16, **options)
        except Broken as broken:
            numbers = broken.numbers | {"broken": broken.conditions}
            raise
        finally:
            name, seconds = request.node.name.removeprefix("test_"), time.perf_counter() - started
            measured[name] = {"seconds": seconds} | numbers
            record.keep([], {"check": name} | measured[name])
        return numbers

    return call


def line(name: str, numbers: dict[str, Any]) -> str:
    shown = [f"{label} {numbers[key]:.4g}" for key, label in SHOWN.items() if key in numbers]
    broken = [f"BROKEN: {', '.join(numbers['broken'])}"] if "broken" in numbers else []
    return f"{name:<44} {numbers['seconds']:5.0f} s  {', '.join(broken + shown)}"


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "lmdeploy", "triton")
    return {"device": torch.cuda.get_device_name(0)} | {n: importlib.metadata.version(n) for n in names}


@pytest.mark.parametrize(
    ("shape", "block_size"),
    [(SDAR_0_6B, 4), (SDAR_0_6B, 16), (SDAR_1_7B, 4)],
    ids=["0.6B-B4", "0.6B-B16", "1.7B-B4"],
)
def test_greedy_parity(run: Run, shape: Shape, block_size: int) -> None:
    run(checks.greedy_parity, shape, block_size=block_size)


@pytest.mark.parametrize("block_size", [4, 16])
def test_cuda_graphs_change_nothing(run: Run, block_size: int) -> None:
    run(checks.cuda_graphs, SDAR_0_6B, block_size=block_size)


def test_a_push_brings_the_new_weights(run: Run) -> None:
    run(checks.push, SDAR_0_6B)


def test_a_push_of_experts_brings_the_new_weights(run: Run) -> None:
    run(checks.push, EXPERTS)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("shape", [SDAR_0_6B, EXPERTS], ids=["0.6B", "experts"])
@pytest.mark.parametrize("check", [checks.greedy_parity, checks.push])
def test_two_gpus_share_each_layer(run: Run, shape: Shape, check: Callable[..., Numbers]) -> None:
    run(check, shape, tp=2)


@pytest.mark.parametrize("cut", [{}, {"top_k": 50}, {"top_p": 0.95}, {"temperature": 0.0}], ids=str)
def test_sampling_waits_for_no_result_and_draws_what_a_cpu_draws(cut: dict[str, float]) -> None:
    """While the host waited for the device in it, LMDeploy could not prepare the next forward beside this one."""
    from dirl.rollout.lmdeploy.changes import DenoisingBlocks, Tracing

    count, size, vocab = 64, 16, 151_936
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(count * size, vocab, generator=generator)).bfloat16()
    seeds = torch.randint(2**62, (count,), generator=generator)
    state = torch.randint(2, (count, size), generator=generator).to(torch.uint8)
    zeros = torch.zeros(count, dtype=torch.long)
    block = DenoisingBlocks(torch.zeros(count, size, dtype=torch.long), state, zeros + 3 * size, seeds, zeros)
    tracing = Tracing(ModelSpec(size, vocab - 1, (), 0, vocab), DecodingParams(**cut))
    expected = block.step(logits, tracing)
    block = DenoisingBlocks(*(getattr(block, f.name).cuda() for f in dataclasses.fields(block)))
    logits = logits.cuda()
    block.step(logits, tracing)  # the first of its kind looks whether the kernels draw as the functions do
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = block.step(logits, tracing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(made[:2], expected[:2], strict=True):  # tokens and states; rounding may move a draw
        assert (ours.cpu() == theirs).double().mean() >= 0.99


def test_sleep_gives_the_memory_back(run: Run) -> None:
    run(checks.sleep_and_wake, SDAR_0_6B)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_groups_are_distinct_and_seeds_reproduce_them(run: Run, graphs: bool) -> None:
    run(checks.groups, SDAR_0_6B, graphs=graphs)


@pytest.mark.parametrize("sleep", [False, True], ids=["awake", "sleep"])
def test_an_rl_run(run: Run, sleep: bool) -> None:
    from tests.gpu.lmdeploy_run import rl_run  # the only test here that needs the command line's packages

    numbers = run(rl_run, SMALL, sleep=sleep)  # raises where one of its bounds is broken
    assert numbers["rollout/staleness"] == 0
    assert numbers["train/grad_norm"] > 0
