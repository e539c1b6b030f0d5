"""The checks of tests/gpu, at a tiny shape on a CPU: complete, exact in fp32, and able to fail.

LMDeploy's engine is the real one; streams, kernels and memory are not, see tests/lmdeploy/cpu.py.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from unittest.mock import patch

import pytest
import torch
from tests.gpu import lmdeploy_checks as checks
from tests.gpu.bounds import Broken
from tests.gpu.engine_pair import SDAR_0_6B, Pair, Shape, ShapedModel, nudge
from tests.gpu.lmdeploy_run import rl_run
from tests.lmdeploy.cpu import lmdeploy_on_cpu
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from dirl.diffusion import drawing
from dirl.rollout import LMDeployEngine
from dirl.types import ModelSpec

CPU = torch.device("cpu")
TINY = Shape(
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab_size=300,  # the tokenizer has 260
    initializer_range=0.35,
    embedding_range=0.35,
    requests=12,
    longest_prompt=12,
    response_tokens=10,
    max_batch_size=8,
    kv_blocks=64,
    page_tokens=16,
    prefill_tokens=128,
    check=False,  # of the start; it costs more than all else here
)
HERE = (TINY, CPU, torch.float32)


class LMDeployHere(LMDeployEngine):
    """Takes the trainer's CPU for a GPU."""

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        super().setup(config, tokenizer, spec, "cuda")
        self.dtype = torch.float32  # of the model that stands in for LMDeploy's


class StaleEngine(LMDeployHere):
    """Keeps its first weights, whatever comes."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        if self.policy_version < 0:
            super().update_weights(weights, policy_version)
        self.policy_version = policy_version


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    with lmdeploy_on_cpu(block_size=4):
        yield


@pytest.mark.parametrize("check", [checks.greedy_parity, checks.cuda_graphs, checks.push, checks.sleep_and_wake])
def test_the_engines_agree_to_the_token(check) -> None:
    numbers = check(*HERE)
    assert numbers["equal_traces"] == 1
    assert numbers["logprob_max"] < 1e-4
    assert numbers.get("trainer_drawn_max", 0) < 1e-3


def test_blocks_of_sixteen_agree_to_the_token() -> None:
    with lmdeploy_on_cpu(block_size=16):
        assert checks.greedy_parity(*HERE, block_size=16)["equal_traces"] == 1


def test_experts_agree_to_the_token_after_a_push() -> None:
    numbers = checks.push(dataclasses.replace(TINY, experts=4), CPU, torch.float32)
    assert numbers["equal_traces"] == 1
    assert numbers["logprob_max"] < 1e-4


def test_seeds_give_the_same_group_again() -> None:
    numbers = checks.groups(*HERE)
    assert numbers["repeated"] == numbers["alone"] == 1
    assert numbers["other_seeds"] < 0.5


@pytest.mark.parametrize("sleep", [False, True])
def test_an_rl_run_ends_with_its_metrics(sleep: bool) -> None:
    numbers = rl_run(*HERE, sleep=sleep, engine=f"{__name__}.LMDeployHere")
    assert numbers["rollout/staleness"] == 0
    assert numbers["train/grad_norm"] > 0
    assert numbers["train/mismatch_abs"] < 1e-5


def test_responses_of_other_weights_are_no_parity() -> None:
    update = Pair.update

    def nudge_between_engines(self: Pair, engine: object, policy_version: int = 0) -> None:
        update(self, engine, policy_version)
        nudge(self.backbone, 0.3)

    with patch.object(Pair, "update", nudge_between_engines), pytest.raises(Broken) as broken:
        checks.greedy_parity(*HERE)
    assert broken.value.conditions == ["equal_tokens", "logprobs", "trainer_greedy", "trainer_drawn"]


def test_a_push_that_changes_nothing_is_noticed() -> None:
    with patch("tests.gpu.engine_pair.LMDeployEngine", StaleEngine), pytest.raises(Broken) as broken:
        checks.push(*HERE)
    assert broken.value.numbers["old_weights"] == 1


def test_an_engine_that_does_not_sleep_is_noticed() -> None:
    with patch.object(LMDeployEngine, "sleep", lambda self: None), pytest.raises(Broken) as broken:
        checks.sleep_and_wake(*HERE)
    assert "allocated_given_back" in broken.value.conditions


def test_seeds_that_do_not_reproduce_are_noticed() -> None:
    with (
        patch.object(drawing, "uniform", lambda seeds, positions, forwards: torch.rand(positions.shape).double()),
        pytest.raises(Broken) as broken,
    ):
        checks.groups(*HERE)
    assert broken.value.conditions == ["repeated", "alone"]


def test_an_engine_with_old_weights_is_noticed_in_a_run() -> None:
    with pytest.raises(Broken) as broken:
        rl_run(*HERE, engine=f"{__name__}.StaleEngine")
    assert broken.value.conditions == ["mismatch"]


def test_the_real_shape_is_that_of_a_0_6b_model() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(ShapedModel(SDAR_0_6B, 4, CPU).describe().config)
    assert sum(p.numel() for p in model.parameters()) == 596_049_920  # Qwen3-0.6B's
    assert SDAR_0_6B.cache_bytes(torch.bfloat16) == 512 * 64 * 28 * 2 * 8 * 128 * 2
