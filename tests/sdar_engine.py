"""A small SDAR in a torch engine, its requests, and its trajectories beside those of the naive decoder."""

import random
from collections.abc import Sequence

import pytest
import torch
from tests.reference import Draw, hf_logits, naive_decode
from torch import Tensor
from transformers import PreTrainedModel

from dirl.diffusion.sampling import uniform
from dirl.models import SDARConfig, SDARForCausalLM, register_models
from dirl.models.families import family_of
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

VOCAB, MASK, STOPS = 19, 18, (3, 5, 11)
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16)
"""Prompt lengths: for every block size above 1, some shorter than a block, some that fill blocks, some that do not.

None is 0: every position of a first block of masks alone sees the same, so that confidences tie.
"""
ATOL = 1e-5
"""fp32 log-probs; the engine's batched and cached forwards add in another order than the oracle's."""


def tiny_model(seed: int = 0, scale: float = 0.3) -> SDARForCausalLM:
    """Random weights; at this scale the confidences spread over (0, 1), so that thresholds and ranks matter."""
    register_models()
    torch.manual_seed(seed)
    config = SDARConfig(vocab_size=VOCAB, num_key_value_heads=2, initializer_range=scale, pad_token_id=0, **SHAPE)
    return SDARForCausalLM(config).eval()


def spec_of(block_size: int, stops: tuple[int, ...] = STOPS) -> ModelSpec:
    return ModelSpec(block_size, mask_token_id=MASK, stop_token_ids=stops, pad_token_id=0, vocab_size=VOCAB)


def engine_of(model: PreTrainedModel, spec: ModelSpec, max_batch_size: int = 64, version: int = 0) -> TorchEngine:
    engine = TorchEngine(max_batch_size)
    engine.setup(model.config, None, spec, "cpu")
    engine.update_weights(family_of(model.config).weights(model), version)
    return engine


def some_prompts(seed: int = 0) -> list[tuple[int, ...]]:
    """One of each length, stop tokens among them: those of a prompt end nothing."""
    choose = random.Random(seed)
    return [tuple(choose.randrange(MASK) for _ in range(length)) for length in LENGTHS]


def requests_for(prompts: Sequence[tuple[int, ...]]) -> list[GenerationRequest]:
    return [GenerationRequest(f"p{i}", i % 3, ids, seed=1000 + 7 * i) for i, ids in enumerate(prompts)]


def answers(engine: TorchEngine, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> dict:
    """Trajectories by key; one for each request."""
    made = list(engine.generate(requests, decoding))
    assert sorted(t.key for t in made) == sorted((r.prompt_id, r.sample_index) for r in requests)
    return {t.key: t for t in made}


def same_uniforms(seed: int) -> Draw:
    """Inverse-CDF draws from the numbers that the engine uses for this seed; it counts forwards from 0."""

    def draw(block: int, forward: int, position: int, probs: Tensor) -> int:
        u = uniform(torch.tensor(seed), torch.tensor(position), torch.tensor(forward - 1))
        return int((probs.cumsum(0) <= u).sum())

    return draw


def assert_same(made: Trajectory, expected: Trajectory) -> None:
    for name in ("prompt_ids", "response_ids", "response_length", "step_map", "finish_reason"):
        assert getattr(made, name) == getattr(expected, name), name
    assert made.behaviour_logprobs == pytest.approx(expected.behaviour_logprobs, abs=ATOL)


def assert_naive(
    made: dict, model: SDARForCausalLM, requests: Sequence[GenerationRequest], spec: ModelSpec, decoding: DecodingParams
) -> None:
    for request in requests:
        expected = naive_decode(hf_logits(model), request.prompt_ids, spec, decoding, same_uniforms(request.seed))
        assert_same(made[request.prompt_id, request.sample_index], expected)


def decoded_like_the_oracle(block_size: int, decoding: DecodingParams, seed: int = 0) -> list[Trajectory]:
    model, spec, requests = tiny_model(seed), spec_of(block_size), requests_for(some_prompts(seed))
    made = answers(engine_of(model, spec), requests, decoding)
    assert_naive(made, model, requests, spec, decoding)
    return list(made.values())


def assert_all_the_same(made: dict, expected: dict) -> None:
    for key, trajectory in made.items():
        assert_same(trajectory, expected[key])
