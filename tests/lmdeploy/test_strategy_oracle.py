"""The torch engine against LMDeploy's own strategy classes, token for token, and where those classes deviate.

The weights are such that no two confidences tie where a commit is decided, which is checked: LMDeploy's `topk` may
break ties otherwise than the torch engine, which takes the leftmost.
"""

import dataclasses
import functools
import random
from collections.abc import Iterable

import pytest
import torch
from lmdeploy.pytorch.strategies.base.model_agent import StoppingCriteria
from lmdeploy.pytorch.strategies.dllm.sequence import SchedulerSequenceDLLM
from tests.lmdeploy.strategy_oracle import (
    BlockLogits,
    Decoded,
    MakeCriteria,
    StrategyOracle,
    design_rule,
    lmdeploys_rule,
)
from tests.reference import hf_logits, naive_block_logits
from tests.tiny import TinyModel, prompt
from torch import Tensor

from dirl.models import ModelDescription
from dirl.rollout import TorchEngine
from dirl.rollout.lmdeploy.changes import _ModelAgent
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

SIZES = (1, 2, 4, 8)
CASES = 60
"""Per block size."""
NO_TIE = 1e-6
"""Confidences at which a commit is decided are farther apart; the engines' logits differ by rounding alone."""


pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------- random cases


@dataclasses.dataclass(frozen=True)
class Case:
    """What one rollout is asked for."""

    weights: int
    spec: ModelSpec
    decoding: DecodingParams
    requests: tuple[GenerationRequest, ...]

    def lmdeploy(self, criteria: MakeCriteria, max_batch_size: int = 16) -> list[Decoded]:
        """What LMDeploy's classes make of it, under a stopping rule."""
        logits = block_logits(self.spec.block_size, self.weights)
        oracle = StrategyOracle(logits, self.spec, self.decoding, criteria, max_batch_size)
        made = oracle.decode(self.requests)
        assert oracle.closest > NO_TIE
        return made


@functools.cache
def torch_engine(case: Case) -> tuple[list[Trajectory], int]:
    """Its trajectories, in the order of the requests, and its forwards over blocks."""
    description = describe(case.spec.block_size)
    engine = TorchEngine(max_batch_size=16)
    engine.setup(description.config, description.tokenizer, case.spec, "cpu")
    engine.update_weights(model(case.spec.block_size, case.weights).named_parameters(), 0)
    made = {t.sample_index: t for t in engine.generate(case.requests, case.decoding)}
    return [made[r.sample_index] for r in case.requests], engine.forwards


@functools.cache
def model(block_size: int, weights: int) -> torch.nn.Module:
    source = TinyModel(block_size, nudge=0.1, nudge_seed=weights)
    return source.build(source.describe().config).eval()


@functools.cache
def block_logits(block_size: int, weights: int) -> BlockLogits:
    """A recomputation without a cache, remembered: the same cases are decoded under several stopping rules."""
    forward = hf_logits(model(block_size, weights))

    @functools.cache
    def logits(ids: tuple[int, ...]) -> Tensor:
        return naive_block_logits(forward, ids, len(ids) - block_size, block_size).float()

    return logits


@functools.cache
def describe(block_size: int) -> ModelDescription:
    return TinyModel(block_size).describe()


def random_case(block_size: int, seed: int) -> Case:
    choose = random.Random(1000 * block_size + seed)
    spec = describe(block_size).spec
    legal = [i for i in range(spec.vocab_size) if i != spec.mask_token_id]
    spec = dataclasses.replace(spec, stop_token_ids=tuple(choose.sample(legal, choose.choice([0, 1, 1, 2, 3]))))
    decoding = DecodingParams(
        strategy=choose.choice(["low_confidence_dynamic", "low_confidence_static", "sequential"]),
        threshold=choose.choice([0.2, 0.4, 0.6, 0.9, 1.0]),
        denoising_steps=choose.choice([None, 1, 2, 3, block_size, 2 * block_size]),
        temperature=choose.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=choose.choice([0, 0, 0, 4]),
        top_p=choose.choice([1.0, 1.0, 0.8]),
        min_p=choose.choice([0.0, 0.0, 0.05]),
        max_response_tokens=choose.randrange(1, 3 * block_size + 4),
    )
    count = choose.choice([1, 1, 2, 3, 5])
    lengths = [choose.randrange(1, 2 * block_size + 4) for _ in range(count)]
    requests = [GenerationRequest("q", i, prompt(n, seed), choose.getrandbits(60)) for i, n in enumerate(lengths)]
    return Case(choose.randrange(3), spec, decoding, tuple(requests))


def cases(block_size: int) -> Iterable[Case]:
    return (random_case(block_size, seed) for seed in range(CASES))


def assert_same(made: Decoded, expected: Trajectory, case: Case) -> None:
    what = (case.spec, case.decoding, expected.prompt_ids)
    assert made.response_ids == expected.response_ids, what
    assert made.step_map == expected.step_map, what
    assert made.text_ids == expected.text_ids, what
    assert (made.text_ids[-1] in case.spec.stop_token_ids) == (expected.finish_reason == "stop"), what


def changed_rule(oracle: StrategyOracle, sequences: list[SchedulerSequenceDLLM]) -> StoppingCriteria:
    """The rule of the engine that is built upon LMDeploy."""
    return _ModelAgent(oracle.factory.dllm_config, oracle.spec.mask_token_id).make_stopping_criteria(sequences)


# ----------------------------------------------------------------------- unmasking and sequences of LMDeploy


@pytest.mark.parametrize("block_size", SIZES)
def test_the_torch_engine_equals_lmdeploys_strategy_classes_token_for_token(block_size: int) -> None:
    seen = set()
    for case in cases(block_size):
        expected, forwards = torch_engine(case)
        made = case.lmdeploy(design_rule)
        for one, trajectory in zip(made, expected, strict=True):
            assert_same(one, trajectory, case)
            seen |= kinds(trajectory, case)
        most = max(without_writing(*pair, case) for pair in zip(made, expected, strict=True))
        assert most == forwards, "all in one batch, each in every forward"
    assert seen >= wanted_kinds(block_size)


def without_writing(made: Decoded, trajectory: Trajectory, case: Case) -> int:
    """Forwards less one for each block but the last: the torch engine writes its final keys with the next block."""
    blocks, size = len(trajectory.prompt_ids) + len(trajectory.response_ids), case.spec.block_size
    return made.forwards - (blocks // size - len(trajectory.prompt_ids) // size - 1)


def kinds(trajectory: Trajectory, case: Case) -> set[str]:
    """What a case is one of."""
    size, limit = case.spec.block_size, case.decoding.max_response_tokens
    end = len(trajectory.prompt_ids) + trajectory.response_length
    steps = max(trajectory.step_map)
    return {
        case.decoding.strategy,
        trajectory.finish_reason,
        "alone" if len(case.requests) == 1 else "batch",
        "partial first block" if len(trajectory.prompt_ids) % size else "full prompt blocks",
        f"{min(len(case.spec.stop_token_ids), 2)} stop words",
        f"{trajectory.finish_reason} {'inside' if end % size else 'at the end of'} a block",
        "a stop word in the prompt" if set(trajectory.prompt_ids) & set(case.spec.stop_token_ids) else "none there",
        "stop at the limit" if trajectory.finish_reason == "stop" and trajectory.response_length == limit else "",
        "several at a step" if steps < size else "one at a step",
        *deviations(trajectory, case),
    }


def wanted_kinds(block_size: int) -> set[str]:
    some = {"low_confidence_dynamic", "low_confidence_static", "sequential", "stop", "length", "alone", "batch"}
    some |= {"0 stop words", "1 stop words", "2 stop words", "a stop word in the prompt", "full prompt blocks"}
    if block_size > 1:
        some |= {"stop inside a block", "length inside a block", "partial first block", "several at a step"}
        some |= {"missed in the first block", "limit before stop"}
    return some


def test_requests_that_wait_for_others_decode_as_they_would_alone() -> None:
    for seed in range(6):
        case = random_case(4, seed)
        rows = [GenerationRequest("q", i, prompt(1 + (5 * i + seed) % 11, i), 10 * seed + i) for i in range(7)]
        case = dataclasses.replace(case, requests=tuple(rows))
        expected, _ = torch_engine(case)
        made = case.lmdeploy(design_rule, max_batch_size=2)
        alone = [torch_engine(dataclasses.replace(case, requests=(row,))) for row in rows]
        for one, trajectory, ((single,), forwards) in zip(made, expected, alone, strict=True):
            assert_same(one, trajectory, case)
            assert_same(one, single, case)
            assert without_writing(one, trajectory, case) == forwards


# ------------------------------------------------------------------------------------- stopping criteria


def deviations(trajectory: Trajectory, case: Case) -> set[str]:
    """Which of LMDeploy's two deviations cost it the end of this response, a stop token before the limit."""
    size, limit = case.spec.block_size, case.decoding.max_response_tokens
    length, first = trajectory.response_length, len(trajectory.prompt_ids)
    if trajectory.finish_reason == "length" or length == limit:
        return set()
    end_of_first_block = -(-first // size) * size - first
    missed = {"missed in the first block"} if length <= end_of_first_block else set()
    same_block = (first + length - 1) // size == (first + limit - 1) // size
    return missed | ({"limit before stop"} if same_block else set())


@pytest.mark.parametrize("block_size", SIZES)
def test_the_changed_stopping_rule_ends_responses_where_the_torch_engine_does(block_size: int) -> None:
    for case in cases(block_size):
        expected, _ = torch_engine(case)
        for one, trajectory in zip(case.lmdeploy(changed_rule), expected, strict=True):
            assert_same(one, trajectory, case)


@pytest.mark.parametrize("block_size", SIZES)
def test_lmdeploys_own_stopping_rule_differs_where_it_deviates_and_nowhere_else(block_size: int) -> None:
    seen = set()
    for case in cases(block_size):
        expected, _ = torch_engine(case)
        for one, trajectory in zip(case.lmdeploy(lmdeploys_rule), expected, strict=True):
            deviates = deviations(trajectory, case)
            seen |= deviates
            if deviates:
                shared = len(trajectory.text_ids)
                assert one.text_ids[:shared] == trajectory.text_ids and len(one.text_ids) > shared, deviates
            else:
                assert_same(one, trajectory, case)
    assert len(seen) == (0 if block_size == 1 else 2)
