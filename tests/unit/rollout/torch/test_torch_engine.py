"""The torch engine against a naive decoder without cache: same tokens, same trace, in any company."""

import dataclasses
import heapq
import random
from collections.abc import Sequence

import pytest
import torch
from tests.reference import Logits, naive_decode
from tests.sdar_engine import (
    SHAPE,
    VOCAB,
    answers,
    assert_all_the_same,
    assert_naive,
    assert_same,
    decoded_like_the_oracle,
    engine_of,
    requests_for,
    some_prompts,
    spec_of,
    tiny_model,
)
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from dirl.models import SDARForCausalLM
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, Strategy, Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------- against the oracle

STRATEGIES = {
    "low_confidence_dynamic": DecodingParams(threshold=0.6, temperature=0, max_response_tokens=11),
    "low_confidence_static": DecodingParams("low_confidence_static", denoising_steps=2, temperature=0),
    "sequential": DecodingParams("sequential", denoising_steps=3, temperature=0),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_greedy_decoding_equals_the_naive_decoder(block_size: int, strategy: Strategy) -> None:
    decoding = dataclasses.replace(STRATEGIES[strategy], max_response_tokens=11)
    made = decoded_like_the_oracle(block_size, decoding)
    assert {t.finish_reason for t in made} == {"stop", "length"}, "both ends should be among the cases"


SAMPLED = {
    "plain": DecodingParams(threshold=0.5),
    "cool": DecodingParams(threshold=0.6, temperature=0.7),
    "top-k": DecodingParams(threshold=0.5, temperature=1.3, top_k=3),
    "top-p": DecodingParams(threshold=0.5, top_p=0.8),
    "min-p": DecodingParams(threshold=0.5, min_p=0.2),
    "all cuts": DecodingParams(threshold=0.5, temperature=0.7, top_k=6, top_p=0.9, min_p=0.1),
    "max": DecodingParams(threshold=0.5, confidence="max"),
    "max static": DecodingParams("low_confidence_static", denoising_steps=2, top_k=4, confidence="max"),
    "static": DecodingParams("low_confidence_static", denoising_steps=2, temperature=0.7),
    "sequential": DecodingParams("sequential", denoising_steps=2, top_p=0.9),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_decoding_equals_the_naive_decoder_with_the_same_uniforms(name: str) -> None:
    decoding = dataclasses.replace(SAMPLED[name], max_response_tokens=10)
    made = decoded_like_the_oracle(4, decoding, seed=1)
    assert max(t.denoising_steps(4) / len(t.response_ids) for t in made) > 0.25, "some block takes several steps"
    assert all(p <= 0 for t in made for p in t.behaviour_logprobs)


def moe_logits(model: Qwen3MoeForCausalLM) -> Logits:
    """transformers' own forward; Qwen3-MoE takes the mask itself, where Qwen3 takes it by kind of layer."""

    def logits(input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[None, None]
        return model(input_ids=input_ids, attention_mask=additive, position_ids=position_ids, use_cache=False).logits

    return logits


def test_a_mixture_of_experts_decodes_like_the_oracle() -> None:
    torch.manual_seed(0)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config = Qwen3MoeConfig(vocab_size=VOCAB, initializer_range=0.3, num_key_value_heads=2, **SHAPE, **experts)
    model, spec, requests = Qwen3MoeForCausalLM(config).eval(), spec_of(4), requests_for(some_prompts())
    model.config._attn_implementation = "eager"
    decoding = DecodingParams(temperature=0, threshold=0.6, max_response_tokens=10)
    made = answers(engine_of(model, spec), requests, decoding)
    for request in requests:
        expected = naive_decode(moe_logits(model), request.prompt_ids, spec, decoding)
        assert_same(made[request.prompt_id, request.sample_index], expected)


def test_an_empty_prompt_decodes_like_any_other() -> None:
    decoding, model, spec = DecodingParams("sequential", max_response_tokens=10), tiny_model(), spec_of(4)
    requests = requests_for([(), (1, 2), (1, 2, 4, 6, 7)])
    assert_naive(answers(engine_of(model, spec), requests, decoding), model, requests, spec, decoding)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_behaviour_logprobs_are_finite_and_not_positive(temperature: float) -> None:
    decoding = DecodingParams(temperature=temperature, top_k=5, top_p=0.9, min_p=0.05, max_response_tokens=32)
    requests = requests_for(some_prompts() * 4)
    made = answers(engine_of(tiny_model(scale=0.6), spec_of(4)), requests, decoding).values()
    logprobs = torch.tensor([p for t in made for p in t.behaviour_logprobs])
    assert logprobs.isfinite().all() and logprobs.max() <= 0 and logprobs.min() < -0.5


# ------------------------------------------------------------------------------------- seeds and company


@pytest.fixture(scope="module")
def company() -> tuple[SDARForCausalLM, list[GenerationRequest], DecodingParams, dict]:
    """Forty requests of uneven lengths, and what one large batch makes of them."""
    model, decoding = tiny_model(2, scale=0.1), DecodingParams(threshold=0.5, max_response_tokens=20)
    requests = requests_for([ids for seed in range(4) for ids in some_prompts(seed)])
    return model, requests, decoding, answers(engine_of(model, spec_of(4)), requests, decoding)


@pytest.mark.parametrize("max_batch_size", [1, 3])
def test_the_same_seeds_give_the_same_tokens_whatever_the_batch_size(company, max_batch_size: int) -> None:
    model, requests, decoding, expected = company
    assert_all_the_same(answers(engine_of(model, spec_of(4), max_batch_size), requests, decoding), expected)


def test_the_same_seeds_give_the_same_tokens_whatever_the_order(company) -> None:
    model, requests, decoding, expected = company
    shuffled = random.Random(0).sample(requests, len(requests))
    assert_all_the_same(answers(engine_of(model, spec_of(4), 7), shuffled, decoding), expected)


def test_the_same_seeds_give_the_same_tokens_whatever_the_company(company) -> None:
    model, requests, decoding, expected = company
    engine = engine_of(model, spec_of(4), 3)
    for few in (requests[9:10], requests[::5], requests[3:11]):  # one engine, so the cache has a past
        assert_all_the_same(answers(engine, few, decoding), expected)


def test_a_group_of_16_equal_prompts_gives_16_distinct_samples() -> None:
    requests = [GenerationRequest("p", i, (1, 2, 4, 6, 7), seed=i) for i in range(16)]
    engine = engine_of(tiny_model(scale=0.1), spec_of(4, stops=()))
    made = answers(engine, requests, DecodingParams(max_response_tokens=8))
    assert len({t.text_ids for t in made.values()}) == 16
    again = answers(engine, [dataclasses.replace(r, seed=5) for r in requests], DecodingParams(max_response_tokens=8))
    assert {t.response_ids for t in again.values()} == {made["p", 5].response_ids}, "one seed is one sample"


# --------------------------------------------------------------------------------------- work that is done


def forward_shapes(engine: TorchEngine) -> list[tuple[int, int]]:
    """[sequences, tokens] of every forward from now on."""
    shapes: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    engine.model.model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_equal_prompts_are_prefilled_once() -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    shapes = forward_shapes(engine)
    long, short = tuple(range(1, 12)), (1, 2, 4, 6, 7)
    requests = [GenerationRequest("long", i, long, seed=i) for i in range(16)]
    requests += [GenerationRequest("short", i, short, seed=50 + i) for i in range(4)]
    answers(engine, requests, DecodingParams(max_response_tokens=6))
    assert shapes[0] == (2, 8), "two prompts, up to the last whole block"
    assert shapes[1] == (20, 4), "then a block of everyone"
    assert all(tokens == 4 for _, tokens in shapes[1:])


def test_prompts_shorter_than_a_block_are_not_prefilled() -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    shapes = forward_shapes(engine)
    answers(engine, [GenerationRequest("p", i, (1, 2, 4), seed=i) for i in range(2)], DecodingParams())
    assert {tokens for _, tokens in shapes} == {4} and len(shapes) == engine.forwards


def forwards_of(trajectory: Trajectory, block_size: int) -> int:
    """One per denoising step: the first of a block also writes the final keys of the block before."""
    return trajectory.denoising_steps(block_size)


def scheduled(lengths: Sequence[int], slots: int) -> int:
    """Steps until all are done if each takes the first slot that becomes free."""
    free = [0] * slots
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def test_finished_sequences_make_room_at_once() -> None:
    slots, decoding = 4, DecodingParams(threshold=0.5, max_response_tokens=48)
    engine = engine_of(tiny_model(2, scale=0.1), spec_of(4), slots)
    requests = [GenerationRequest("p", i, (1, 2, 4, 6, 7, 8), seed=i) for i in range(24)]
    made = answers(engine, requests, decoding)
    work = [forwards_of(made["p", i], 4) for i in range(24)]
    assert max(work) > 4 * min(work), "the lengths should be uneven"
    assert engine.forwards == scheduled(work, slots)
    waiting_for_the_longest = sum(max(work[i : i + slots]) for i in range(0, 24, slots))
    assert engine.forwards < 0.75 * waiting_for_the_longest
    assert engine.forwards < 0.4 * sum(work)


def test_no_request_is_no_work() -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    assert list(engine.generate([], DecodingParams())) == []
    assert engine.forwards == 0


def test_trajectories_come_as_they_finish() -> None:
    model, decoding = tiny_model(2, scale=0.1), DecodingParams(threshold=0.5, max_response_tokens=48)
    requests = [GenerationRequest("p", i, (1, 2), seed=i) for i in range(12)]
    made = list(engine_of(model, spec_of(4)).generate(requests, decoding))
    work = [forwards_of(t, 4) for t in made]
    assert work == sorted(work) and work[0] < work[-1]
    first = engine_of(model, spec_of(4))
    next(first.generate(requests, decoding))
    assert first.forwards == work[0]
