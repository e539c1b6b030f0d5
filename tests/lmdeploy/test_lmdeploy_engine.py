"""LMDeploy's real engine, end to end, against the torch engine: the same traces, however it schedules."""

import random
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from tests.lmdeploy.cpu import lmdeploy_on_cpu
from tests.tiny import TinyModel, prompt

from dirl.rollout import LMDeployEngine, TorchEngine
from dirl.rollout.engine import EnginesLostError
from dirl.types import DecodingParams, GenerationRequest, Trajectory

ATOL = 1e-5
"""fp32 log-probs; the engines' forwards add in different orders."""


pytestmark = pytest.mark.usefixtures("one_thread")


class Pair:
    """Both engines with the same weights."""

    def __init__(self, block_size: int, nudge: float = 0.0, **settings) -> None:
        settings = dict(max_batch_size=16, kv_blocks=64, page_tokens=16, prefill_tokens=128) | settings
        self.source = TinyModel(block_size, nudge=nudge)
        self.description = self.source.describe()
        self.weights = list(self.source.build(self.description.config).named_parameters())
        self.reference, self.engine = TorchEngine(max_batch_size=5), LMDeployEngine(**settings)
        for engine, device in ((self.reference, "cpu"), (self.engine, "cuda")):
            engine.setup(self.description.config, self.description.tokenizer, self.description.spec, device)
            engine.update_weights(self.weights, policy_version=7)

    def compare(self, requests: list[GenerationRequest], decoding: DecodingParams) -> list[Trajectory]:
        expected = {t.key: t for t in self.reference.generate(requests, decoding)}
        made = list(self.engine.generate(requests, decoding))
        assert sorted(t.key for t in made) == sorted(expected)
        for trajectory in made:
            assert_same(trajectory, expected[trajectory.key])
            trajectory.check(self.description.spec)
        return made


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Parametrised indirectly by (block size, settings)."""
    block_size, settings = request.param
    with lmdeploy_on_cpu(block_size):
        made = Pair(block_size, **settings)
        yield made
        made.engine.close()


def assert_same(made: Trajectory, expected: Trajectory) -> None:
    names = ("prompt_ids", "response_ids", "response_length", "step_map", "finish_reason", "policy_version")
    for name in names:
        assert getattr(made, name) == getattr(expected, name), (made.key, name)
    assert made.behaviour_logprobs == pytest.approx(expected.behaviour_logprobs, abs=ATOL)


def some_requests(count: int, seed: int, longest: int = 30) -> list[GenerationRequest]:
    """Prompts of all lengths modulo the block size, some of them asked twice with different seeds."""
    choose = random.Random(seed)
    lengths = [choose.randrange(1, longest) for _ in range(count)]
    return [
        GenerationRequest(f"p{i // 2}", i % 2, prompt(lengths[i // 2], i // 2), 77 * seed + i) for i in range(count)
    ]


def some_params(seed: int) -> DecodingParams:
    choose = random.Random(seed)
    return DecodingParams(
        strategy=choose.choice(["low_confidence_dynamic", "low_confidence_static", "sequential"]),
        threshold=choose.choice([0.3, 0.6, 0.9]),
        denoising_steps=choose.choice([None, 1, 2]),
        temperature=choose.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=choose.choice([0, 0, 4]),
        top_p=choose.choice([1.0, 1.0, 0.8]),
        min_p=choose.choice([0.0, 0.0, 0.05]),
        max_response_tokens=choose.randrange(1, 40),
        confidence=choose.choice(["sampled", "max"]),
    )


def of(block_size: int, **settings) -> tuple[int, dict]:
    return block_size, settings


@pytest.mark.parametrize("pair", [of(1), of(2), of(4), of(8)], indirect=True, ids=["B1", "B2", "B4", "B8"])
def test_traces_equal_the_torch_engines_under_all_settings(pair: Pair) -> None:
    ends = set()
    for seed in range(12):
        made = pair.compare(some_requests(10, seed), some_params(seed))
        ends |= {t.finish_reason for t in made}
    assert ends == {"stop", "length"}, "both ends should be among the cases"


@pytest.mark.parametrize("pair", [of(4, kv_blocks=16), of(8, kv_blocks=16)], indirect=True)
def test_traces_survive_preemption(pair: Pair) -> None:
    from lmdeploy.pytorch.strategies.dllm.sequence import SchedulerSequenceDLLM

    evicted = []
    original = SchedulerSequenceDLLM.set_step

    def count(self: SchedulerSequenceDLLM, step: int) -> None:
        if step < self.num_history_ids:
            evicted.append(self.session_id)
        original(self, step)

    with patch.object(SchedulerSequenceDLLM, "set_step", count):
        for seed in range(4):
            decoding = DecodingParams(threshold=0.7, temperature=1.2, max_response_tokens=60)
            pair.compare(some_requests(16, seed, longest=40), decoding)
    assert evicted, "16 sequences of up to 100 tokens should not fit into 16 pages of 16"


@pytest.mark.parametrize("pair", [of(4, prefill_tokens=16, max_batch_size=4)], indirect=True)
def test_traces_survive_prefill_in_pieces(pair: Pair) -> None:
    from lmdeploy.pytorch.model_inputs import ModelInputs

    pieces = []
    forward = pair.engine.engine.executor.model_agent._forward_impl

    def look(inputs: ModelInputs, cache_inputs: object = None) -> dict:
        pieces.append(inputs.is_chunk)
        return forward(inputs, cache_inputs)

    with patch.object(pair.engine.engine.executor.model_agent, "_forward_impl", look):
        for seed in range(4):
            pair.compare(some_requests(8, seed, longest=100), DecodingParams(threshold=0.7, max_response_tokens=20))
    assert any(pieces), "prompts of up to 100 tokens should not be prefilled 16 at a time in one piece"


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_a_group_is_distinct_and_seeds_reproduce_it(pair: Pair) -> None:
    group = [GenerationRequest("q", i, prompt(9), seed=i) for i in range(16)]
    decoding = DecodingParams(temperature=1.5, threshold=0.9, max_response_tokens=16)
    first = {t.sample_index: t for t in pair.engine.generate(group, decoding)}
    assert len({t.response_ids for t in first.values()}) == 16
    alone = next(iter(pair.engine.generate([group[5]], decoding)))
    assert_same(alone, first[5])


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_greedy_outputs_after_a_push_are_those_of_the_new_weights(pair: Pair) -> None:
    greedy = DecodingParams(temperature=0, max_response_tokens=20)
    before = pair.compare(some_requests(6, 0), greedy)
    new = TinyModel(4, nudge=0.2)
    weights = list(new.build(pair.description.config).named_parameters())
    for engine in (pair.reference, pair.engine):
        engine.update_weights(weights, policy_version=8)
    after = pair.compare(some_requests(6, 0), greedy)
    assert {t.policy_version for t in after} == {8}
    assert {t.response_ids for t in before} != {t.response_ids for t in after}


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_pushed_adapters_sample_as_in_the_torch_engine_and_otherwise_than_their_base(pair: Pair) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from dirl.models.families.low_rank import low_ranks
    from dirl.models.lora import LoRAConfig, add_adapters

    family, backbone = pair.description.family, pair.source.build(pair.description.config)
    requests, decoding = some_requests(8, seed=6), some_params(6)
    before = pair.compare(requests, decoding)
    add_adapters(backbone, family, LoRAConfig(rank=3), pair.source)
    generator = torch.Generator().manual_seed(1)
    for version in (8, 9):  # as between two rollouts
        with torch.no_grad():
            for low_rank in low_ranks(backbone).values():
                low_rank.up.normal_(std=0.1, generator=generator)
        for engine in (pair.reference, pair.engine):
            engine.update_weights(family.weights(backbone, pair.engine.dtype), version)  # merged, and rounded once
        made = pair.compare(requests, decoding)
        assert {t.key: t.response_ids for t in made} != {t.key: t.response_ids for t in before}
        before = made


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "laid out anew"])
@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_captured_graphs_outlive_a_push_unless_it_moves_a_weight(pair: Pair, moved: bool) -> None:
    from lmdeploy.pytorch.weight_loader import model_weight_loader

    agent, resets = pair.engine.engine.executor.model_agent, []

    def lay_out_anew(model: torch.nn.Module) -> None:
        head = model.get_input_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)

    with (
        patch.object(agent, "reset_graph_runner", lambda: resets.append(1)),
        patch.object(
            model_weight_loader, "process_weights_after_loading", lay_out_anew if moved else lambda model: None
        ),
    ):
        pair.engine.update_weights(pair.weights, policy_version=8)
    assert len(resets) == moved


@pytest.mark.parametrize("pair", [of(4, sleep=True)], indirect=True)
def test_a_sleeping_engine_gives_its_memory_back_and_works_after_the_next_push(pair: Pair) -> None:
    decoding = DecodingParams(threshold=0.7, max_response_tokens=20)
    pair.compare(some_requests(6, 0), decoding)
    pair.engine.sleep()
    agent = pair.engine.engine.executor.model_agent
    assert agent.cache_engine is None
    assert {p.device.type for p in agent.patched_model.get_model().parameters()} == {"meta"}
    with pytest.raises(ValueError, match="no weights"):
        next(pair.engine.generate(some_requests(1, 0), decoding))
    for engine in (pair.reference, pair.engine):
        engine.update_weights(pair.weights, policy_version=9)
    pair.compare(some_requests(6, 1), decoding)


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_a_consumer_that_leaves_early_leaves_nothing_behind(pair: Pair) -> None:
    decoding = DecodingParams(threshold=0.9, max_response_tokens=40)
    rollout = pair.engine.generate(some_requests(20, 3), decoding)
    next(rollout)
    rollout.close()
    assert pair.engine.engine.scheduler.get_sessions() == [] or not list(pair.engine.engine.scheduler.get_sessions())
    assert not pair.engine.tracing.traces
    pair.compare(some_requests(8, 4), decoding)


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_threads_with_different_settings_do_not_mix(pair: Pair) -> None:
    from concurrent.futures import ThreadPoolExecutor

    jobs = [(some_requests(6, seed), some_params(seed % 3)) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda job: list(pair.engine.generate(*job)), jobs))
    for (requests, decoding), made in zip(jobs, results, strict=True):
        expected = {t.key: t for t in pair.reference.generate(requests, decoding)}
        assert sorted(t.key for t in made) == sorted(expected)
        for trajectory in made:
            assert_same(trajectory, expected[trajectory.key])


@pytest.mark.parametrize("pair", [(1, {}), (4, {}), (8, {"max_batch_size": 3})], indirect=True)
def test_stop_strings_end_the_same_responses_in_the_same_block_and_the_next_rollout_has_none(pair: Pair) -> None:
    requests = some_requests(16, seed=5)
    whole = pair.compare(requests, DecodingParams(threshold=0.5, max_response_tokens=40))
    for strings in (("+",), ("1", "20=", "3")):
        made = pair.compare(requests, DecodingParams(threshold=0.5, max_response_tokens=40, stop_strings=strings))
        assert {t.finish_reason for t in made} >= {"stop_string"}
        assert sum(len(t.response_ids) for t in made) < sum(len(t.response_ids) for t in whole)
    again = pair.compare(requests, DecodingParams(threshold=0.5, max_response_tokens=40))
    first = {t.key: t for t in whole}
    assert sorted(t.key for t in again) == sorted(first)
    for trajectory in again:
        assert_same(trajectory, first[trajectory.key])


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_an_update_must_carry_all_weights_and_no_others(pair: Pair) -> None:
    with pytest.raises(ValueError, match="left out"):
        pair.engine.update_weights(pair.weights[1:], policy_version=8)
    with pytest.raises(ValueError, match="no weights"):
        next(pair.engine.generate(some_requests(1, 0), DecodingParams()))
    with pytest.raises(ValueError, match="unknown"):
        pair.engine.update_weights([("nobody", torch.zeros(1))], policy_version=8)
    with pytest.raises(ValueError, match="shape"):
        pair.engine.update_weights([(pair.weights[0][0], torch.zeros(1))], policy_version=8)
    pair.engine.update_weights(pair.weights, policy_version=7)
    pair.compare(some_requests(2, 0), DecodingParams(max_response_tokens=8))


@pytest.mark.parametrize("pair", [of(4)], indirect=True)
def test_an_engine_that_breaks_says_why(pair: Pair) -> None:
    def broken(*args: object, **kwargs: object) -> dict:
        raise RuntimeError("CUDA out of memory")

    agent = pair.engine.engine.executor.model_agent
    with patch.object(agent, "_forward_impl", broken), pytest.raises(EnginesLostError, match="CUDA out of memory"):
        list(pair.engine.generate(some_requests(3, 0), DecodingParams(max_response_tokens=8)))


@pytest.mark.parametrize("pair", [of(4, kv_blocks=16)], indirect=True)
def test_a_request_that_cannot_fit_is_refused_before_it_starts(pair: Pair) -> None:
    with pytest.raises(ValueError, match="kv_blocks"):
        next(pair.engine.generate(some_requests(1, 0), DecodingParams(max_response_tokens=1000)))


def test_equal_samples_in_a_group_are_found_at_the_start() -> None:
    from lmdeploy.pytorch.strategies.dllm.sampling import DLLMSamplingStrategy

    from dirl.rollout.lmdeploy import changes as lmdeploy_changes

    def same_seed(self: object, seqs: list) -> object:
        for seq in seqs:
            seq.sampling_param.random_seed = 1
        return honest(self, seqs)

    honest = lmdeploy_changes._Sampling.make_sampling_inputs
    assert issubclass(lmdeploy_changes._Sampling, DLLMSamplingStrategy)
    with (
        lmdeploy_on_cpu(4),
        patch.object(lmdeploy_changes._Sampling, "make_sampling_inputs", same_seed),
        pytest.raises(RuntimeError, match="1 different samples"),
    ):
        Pair(4)
